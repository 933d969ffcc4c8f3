//! Manifests that nobody would write, from the schema that the API server has: fields that come later are covered without a change here.
//!
//! ```text
//! CRD ─► schema ─┬─► whole specs, every value from the schema
//!                └─► good specs with a few fields put to what the schema says, or does not say
//! ```

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::Union;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value, json};

/// Deepest that a value of the schema goes; below, only what is required.
const DEEPEST: usize = 14;

/// One step into an object.
#[derive(Debug, Clone)]
enum Step {
    Key(String),
    First,
    /// Of a map, whose keys are the user's.
    Any,
}

/// Makes manifests of one kind.
pub struct Generator {
    kind: &'static str,
    runner: TestRunner,
    specs: BoxedStrategy<Value>,
    metadata: BoxedStrategy<Value>,
}

impl Generator {
    /// Of the kind whose CRD is in `file`; `good` are specs to start from.
    pub fn new(kind: &'static str, file: &Path, good: Vec<Value>, seed: u64) -> anyhow::Result<Self> {
        let crd: Value = serde_saphyr::from_str(&std::fs::read_to_string(file)?)?;
        let schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone();
        let mut places = Vec::new();
        collect(&schema, &mut Vec::new(), &mut places);
        anyhow::ensure!(places.len() > 3, "{kind}: the schema has {} fields", places.len());
        // Fields of the pod template are many; without weights hardly any other would be chosen.
        let weighted = places.into_iter().map(|(steps, schema)| {
            let in_template = steps.iter().any(|s| matches!(s, Step::Key(k) if k == "template"));
            let strategy = (Just(steps), value(&schema, 0)).boxed();
            (if in_template { 1 } else { 20 }, strategy)
        });
        let edit = Union::new_weighted(weighted.collect()).boxed();
        let edited = (proptest::sample::select(good), vec(edit, 0..3)).prop_map(|(mut spec, edits)| {
            edits
                .into_iter()
                .for_each(|(steps, value)| put(&mut spec, &steps, value));
            spec
        });
        let mut seed_bytes = [0; 32];
        seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes);
        Ok(Self {
            kind,
            runner: TestRunner::new_with_rng(Config::default(), rng),
            specs: prop_oneof![6 => edited, 1 => value(&schema, 0)].boxed(),
            metadata: metadata(),
        })
    }

    /// The next one; `number` makes its name its own.
    pub fn next(&mut self, number: usize) -> anyhow::Result<Value> {
        let failed = |reason| anyhow::anyhow!("no value: {reason}");
        let spec = self.specs.new_tree(&mut self.runner).map_err(failed)?.current();
        let mut metadata = self.metadata.new_tree(&mut self.runner).map_err(failed)?.current();
        let pattern = metadata["name"].as_str().unwrap_or_default();
        metadata["name"] = pattern.replace('#', &format!("{number:04}")).into();
        let mut object = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": self.kind, "metadata": metadata});
        if !spec.is_null() {
            object["spec"] = spec;
        }
        Ok(object)
    }
}

/// Every field of a schema with the way to it.
fn collect(schema: &Value, way: &mut Vec<Step>, places: &mut Vec<(Vec<Step>, Value)>) {
    let mut go = |step, sub: &Value| {
        way.push(step);
        places.push((way.clone(), sub.clone()));
        collect(sub, way, places);
        way.pop();
    };
    for (name, sub) in schema["properties"].as_object().into_iter().flatten() {
        go(Step::Key(name.clone()), sub);
    }
    if schema["items"].is_object() {
        go(Step::First, &schema["items"]);
    }
    if schema["additionalProperties"].is_object() {
        go(Step::Any, &schema["additionalProperties"]);
    }
}

/// Puts a value at a place, and what has to be on the way to it.
fn put(at: &mut Value, steps: &[Step], value: Value) {
    let Some((step, rest)) = steps.split_first() else {
        *at = value;
        return;
    };
    match step {
        Step::Key(key) => {
            if !at.is_object() {
                *at = json!({});
            }
            put(&mut at[key.as_str()], rest, value);
        }
        Step::Any => {
            if !at.is_object() {
                *at = json!({});
            }
            let key = at.as_object().and_then(|m| m.keys().next().cloned());
            put(&mut at[key.unwrap_or_else(|| "example.com/key".into())], rest, value);
        }
        Step::First => {
            if at.as_array().is_none_or(Vec::is_empty) {
                // What lists hold mostly needs a name.
                *at = json!([{"name": "made"}]);
            }
            put(&mut at[0], rest, value);
        }
    }
}

/// Values of a schema, mostly; some are of another type, or null.
fn value(schema: &Value, depth: usize) -> BoxedStrategy<Value> {
    let strategy = match schema["type"].as_str() {
        _ if schema["x-kubernetes-int-or-string"] == true => prop_oneof![numbers(), amounts(), texts()].boxed(),
        Some("string") => match schema["enum"].as_array() {
            Some(names) => prop_oneof![6 => proptest::sample::select(names.clone()), 1 => texts()].boxed(),
            None => texts(),
        },
        Some("integer" | "number") => numbers(),
        Some("boolean") => any::<bool>().prop_map(Value::from).boxed(),
        Some("array") => list(&schema["items"], depth),
        Some("object") if schema["additionalProperties"].is_object() => {
            let entry = (keys(), value(&schema["additionalProperties"], depth + 1));
            let fold = |entries: Vec<(String, Value)>| Value::Object(entries.into_iter().collect());
            vec(entry, 0..4).prop_map(fold).boxed()
        }
        Some("object") => object(schema, depth),
        _ => prop_oneof![texts(), numbers()].boxed(),
    };
    let other = prop_oneof![
        Just(Value::Null),
        texts(),
        numbers(),
        Just(json!([])),
        Just(json!({})),
        Just(json!([null]))
    ];
    prop_oneof![60 => strategy, 1 => other].boxed()
}

fn list(items: &Value, depth: usize) -> BoxedStrategy<Value> {
    let item = value(items, depth + 1);
    let few = vec(item.clone(), 0..3).prop_map(Value::from);
    let same = (item, 2_usize..40).prop_map(|(item, n)| Value::from(vec![item; n]));
    prop_oneof![8 => few, 1 => same].boxed()
}

fn object(schema: &Value, depth: usize) -> BoxedStrategy<Value> {
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties: Vec<_> = schema["properties"].as_object().into_iter().flatten().collect();
    // Objects of many fields get about four of them, however many there are.
    let share = (4.0 / (properties.len().max(1) as f64)).min(0.7) / (1.0 + depth as f64 / 8.0);
    let fields = properties.into_iter().filter_map(|(name, sub)| {
        let needed = required.contains(&name.as_str());
        if depth >= DEEPEST && !needed {
            return None;
        }
        let chance = if needed { 0.97 } else { share };
        let name = name.clone();
        let field = proptest::option::weighted(chance, value(sub, depth + 1));
        Some(field.prop_map(move |v| v.map(|v| (name.clone(), v))).boxed())
    });
    let fields: Vec<_> = fields.collect();
    fields
        .prop_map(|fields| Value::Object(fields.into_iter().flatten().collect::<Map<_, _>>()))
        .boxed()
}

fn numbers() -> BoxedStrategy<Value> {
    let known = [
        0,
        1,
        2,
        3,
        80,
        8000,
        -1,
        65_535,
        65_536,
        1 << 31,
        -(1 << 31),
        (1 << 31) - 1,
        i64::MAX,
        i64::MIN,
    ];
    prop_oneof![
        6 => proptest::sample::select(known.to_vec()).prop_map(Value::from),
        2 => (0_i64..100).prop_map(Value::from),
        1 => proptest::sample::select(vec![0.5, -1.5, 1e300, 2.0]).prop_map(Value::from),
    ]
    .boxed()
}

fn amounts() -> BoxedStrategy<Value> {
    let known = [
        "1",
        "500m",
        "16Gi",
        "24Gi",
        "0",
        "-1",
        "1e3",
        "1E",
        "999999999999Ei",
        "0.1n",
        ".5",
        "5.",
        "1e-9999",
        "1Zi",
        " 1",
        "+2",
    ];
    proptest::sample::select(known.to_vec()).prop_map(Value::from).boxed()
}

fn text() -> BoxedStrategy<String> {
    let known = [
        "",
        " ",
        "x",
        "vllm",
        "generic",
        "localai",
        "triton",
        "deepspeed-mii",
        "h100",
        "H100",
        "CUDA",
        "a,b",
        "/",
        "..",
        "../../etc",
        "/data",
        "http://example.com/a b?c='d'&e=\"f\"",
        "https://",
        "$(id)",
        "`id`",
        "';\"\\",
        "{{ .x }}",
        "$(VAR)",
        "-",
        "--help",
        "a=b",
        "model.example.com",
        "*.example.com",
        "ExAmple.com",
        "1.2.3.4",
        "serving",
        "models",
        "Always",
        "TCP",
        "true",
        "null",
        "0x10",
        "2024-01-01T00:00:00Z",
        "1h",
        "\u{0}",
        "\u{7}\u{1b}[31m",
        "a\nb\r\n",
        "\t",
        "é",
        "日本語",
        "🦀🦀",
        "\u{202e}abc",
        "e\u{301}",
        "\u{feff}",
        "\u{fffd}",
        "ﷺ",
    ];
    prop_oneof![
        12 => proptest::sample::select(known.to_vec()).prop_map(str::to_owned),
        4 => "[a-z]([-a-z0-9]{0,12}[a-z0-9])?",
        2 => "\\PC{0,40}",
        1 => any::<String>().prop_map(|s| s.chars().take(64).collect()),
        2 => proptest::sample::select(vec![62_usize, 63, 64, 253, 254, 316, 317, 1000, 5000]).prop_map(|n| "a".repeat(n)),
        1 => proptest::sample::select(vec![20_000_usize, 70_000, 300_000]).prop_map(|n| "é".repeat(n)),
    ]
    .boxed()
}

fn texts() -> BoxedStrategy<Value> {
    text().prop_map(Value::from).boxed()
}

/// Of labels, annotations, node selectors, options and resources.
fn keys() -> BoxedStrategy<String> {
    let known = [
        "app",
        "example.com/key",
        "mlcontroller.premlabs.io/ai-deployment",
        "berth.dev/paused",
        "berth.dev/gpu-class",
        "berth.dev/applied",
        "app.kubernetes.io/managed-by",
        "nvidia.com/gpu",
        "cpu",
        "memory",
        "imageTag",
        "imageRepository",
        "dtype",
        "kubernetes.io/hostname",
    ];
    prop_oneof![6 => proptest::sample::select(known.to_vec()).prop_map(str::to_owned), 2 => text()].boxed()
}

/// Mostly a name that any object may have; `#` stands for the number.
fn metadata() -> BoxedStrategy<Value> {
    let long = |n: usize| format!("h{}-#", "a".repeat(n - 6));
    let names = [
        (24, "h-#".to_owned()),
        (1, long(63)),
        (1, long(64)),
        (1, long(253)),
        (1, long(254)),
        (1, long(57)),
        (1, long(52)),
        (1, "h.#".into()),
        (1, "#-h".into()),
        (1, "H-#".into()),
        (1, "h_#".into()),
        (1, "é#".into()),
        (1, "h-#-".into()),
    ];
    let name = Union::new_weighted(names.into_iter().map(|(weight, name)| (weight, Just(name))).collect());
    let map = || proptest::option::weighted(0.15, vec((keys(), text()), 1..3));
    (name, map(), map())
        .prop_map(|(name, labels, annotations)| {
            let mut metadata = json!({"name": name});
            for (field, entries) in [("labels", labels), ("annotations", annotations)] {
                if let Some(entries) = entries {
                    metadata[field] = entries.into_iter().map(|(k, v)| (k, Value::from(v))).collect();
                }
            }
            metadata
        })
        .boxed()
}
