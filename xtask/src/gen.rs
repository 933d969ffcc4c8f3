//! Files that follow from the Rust types and tables: CRDs, the controller's RBAC, the constants of its admission policies, and
//! `docs/permissions.md`. Each is written whole, so a stale one can only be overwritten or reported.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use berth_crds::access::{
    ACCESS, Access, HARDWARE_KEY_PREFIXES, NODE_CONDITIONS, Scope, TAINT_EFFECT, UNHEALTHY_TAINT,
};
use berth_crds::{names, schema};

/// Folder that holds generated files only: what is not generated there is drift too.
const CRDS: &str = "deploy/charts/berth-crds/templates";
const RBAC: &str = "deploy/charts/berth/templates/rbac-controller.yaml";
const CONSTANTS: &str = "deploy/charts/berth/templates/_constants.tpl";
const PERMISSIONS: &str = "docs/permissions.md";

/// The part of that page that is about agents, which have no rights to generate it from.
const LANES: &str = include_str!("lanes.md");

const NOTICE: &str = "Written by `cargo xtask gen` from crds/src/access.rs; edit that.";

/// Writes every generated file, or, with `check`, fails when one differs from what would be written.
pub fn run(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the repository")?;
    let files = files()?;
    let stale = stale(root, &files)?;
    if check {
        let drifted: Vec<&PathBuf> = files
            .iter()
            .filter(|(path, text)| std::fs::read_to_string(root.join(path)).ok().as_ref() != Some(*text))
            .map(|(path, _)| path)
            .chain(&stale)
            .collect();
        if !drifted.is_empty() {
            let list: Vec<String> = drifted.iter().map(|p| format!("  {}", p.display())).collect();
            bail!(
                "not what the code says (run `cargo xtask gen` and commit the result):\n{}",
                list.join("\n")
            );
        }
        return Ok(());
    }
    for path in &stale {
        std::fs::remove_file(root.join(path)).with_context(|| format!("remove {}", path.display()))?;
    }
    for (path, text) in &files {
        let at = root.join(path);
        if let Some(folder) = at.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        std::fs::write(&at, text).with_context(|| format!("write {}", at.display()))?;
    }
    Ok(())
}

/// Path from the repository root → text.
fn files() -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::from([
        (RBAC.into(), rbac()),
        (CONSTANTS.into(), constants()),
        (PERMISSIONS.into(), permissions()),
    ]);
    for crd in schema::all() {
        let name = crd.metadata.name.clone().context("a CRD has a name")?;
        let yaml = serde_saphyr::to_string(&schema::manifest(&crd)).with_context(|| format!("write {name} as YAML"))?;
        files.insert(Path::new(CRDS).join(format!("{name}.yaml")), escape(&yaml));
    }
    Ok(files)
}

/// Files in the folder of CRDs that are no longer generated.
fn stale(root: &Path, files: &BTreeMap<PathBuf, String>) -> Result<Vec<PathBuf>> {
    let folder = root.join(CRDS);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut stale = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = Path::new(CRDS).join(entry?.file_name());
        if !files.contains_key(&path) {
            stale.push(path);
        }
    }
    Ok(stale)
}

/// Text that Helm renders to itself.
fn escape(text: &str) -> String {
    text.replace("{{", "{{ \"{{\" }}")
}

fn rbac() -> String {
    let mut out = format!("# {NOTICE}\n");
    let rules = |out: &mut String, own: bool| {
        for access in ACCESS.iter().filter(|a| (a.scope != Scope::Cluster) == own) {
            rule(out, access);
        }
    };
    out.push_str(&head("ClusterRole", false));
    out.push_str("rules:\n");
    rules(&mut out, false);
    out.push_str(&head("ClusterRoleBinding", false));
    out.push_str(&binding("ClusterRole"));
    out.push_str(&head("Role", true));
    out.push_str("rules:\n");
    rules(&mut out, true);
    out.push_str(&head("RoleBinding", true));
    out.push_str(&binding("Role"));
    out
}

fn head(kind: &str, namespaced: bool) -> String {
    let namespace = if namespaced {
        "\n  namespace: {{ .Release.Namespace }}"
    } else {
        ""
    };
    format!(
        "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: berth-controller{namespace}\n  labels:\n    {{{{- include \"berth.labels\" (list . \"controller\") | nindent 4 }}}}\n"
    )
}

fn binding(role: &str) -> String {
    format!(
        "roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: {role}\n  name: berth-controller\nsubjects:\n- kind: ServiceAccount\n  name: berth-controller\n  namespace: {{{{ .Release.Namespace }}}}\n"
    )
}

fn rule(out: &mut String, access: &Access) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# {}", access.why);
    let _ = writeln!(out, "- apiGroups: [\"{}\"]", access.group);
    let _ = writeln!(out, "  resources: [{}]", access.resource);
    if let Scope::OwnObject(name) = access.scope {
        let _ = writeln!(out, "  resourceNames: [{name}]");
    }
    let _ = writeln!(out, "  verbs: [{}]", access.verbs.join(", "));
}

/// Named templates that render to CEL literals.
fn constants() -> String {
    let list = |items: &[&str]| format!("['{}']", items.join("', '"));
    let string = |item: &str| format!("'{item}'");
    let mut out = format!("{{{{- /* {NOTICE} Each renders to a CEL literal. */ -}}}}\n");
    for (name, value) in [
        ("protectedDomains", list(names::PROTECTED_DOMAINS)),
        ("hardwareKeyPrefixes", list(HARDWARE_KEY_PREFIXES)),
        ("unhealthyTaint", string(UNHEALTHY_TAINT)),
        ("taintEffect", string(TAINT_EFFECT)),
        ("nodeConditions", list(NODE_CONDITIONS)),
        ("gate", string(names::GATE)),
        ("domain", string(names::DOMAIN)),
        ("leaderLabel", string(names::LEADER)),
    ] {
        let _ = writeln!(out, "{{{{- define \"berth.cel.{name}\" -}}}}{value}{{{{- end -}}}}");
    }
    out
}

fn permissions() -> String {
    let mut out = format!(
        "# What the controller may do\n\n<!-- {NOTICE} The lanes: xtask/src/lanes.md. -->\n\n\
         These are all the rights of the ServiceAccount `berth-controller`. The agents' ServiceAccount, `berth-agent`, has none.\n\
         What a right on nodes and pods may be used for is narrowed further by two admission policies: see\n\
         [operations](operations.md#what-the-controller-may-write).\n\n\
         | API | verbs | where | what for |\n|---|---|---|---|\n"
    );
    for access in ACCESS {
        let group = if access.group.is_empty() { "core" } else { access.group };
        let place = match access.scope {
            Scope::Cluster => "cluster".to_owned(),
            Scope::OwnNamespace => "own namespace".to_owned(),
            Scope::OwnObject(name) => format!("own namespace, `{name}` only"),
        };
        let optional = if access.optional {
            " Not every cluster asks for it."
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "| {group} `{}` | {} | {place} | {}{optional} |",
            access.resource,
            access.verbs.join(", "),
            access.why
        );
    }
    out.push_str(
        "\nRBAC cannot limit `create` to a name, since the name is not known when the request is authorised; so `create` stands alone\n\
         for Lease, Secret and ConfigMap, in the installation's namespace.\n",
    );
    out.push_str(LANES);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helm_leaves_braces_of_the_text_alone() {
        assert_eq!(escape("a {{ b }} c"), "a {{ \"{{\" }} b }} c");
        assert_eq!(escape("no braces {}"), "no braces {}");
    }

    #[test]
    fn crds_survive_the_way_through_yaml() {
        for crd in schema::all() {
            let value = schema::manifest(&crd);
            let yaml = serde_saphyr::to_string(&value).unwrap();
            let back: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
            assert_eq!(back, value);
        }
    }

    #[test]
    fn every_row_of_the_table_becomes_one_rule() {
        assert_eq!(rbac().matches("- apiGroups:").count(), ACCESS.len());
        assert!(rbac().contains("  resourceNames: [berth-trust]\n  verbs: [get, patch]\n"));
    }

    #[test]
    fn the_operations_page_explains_every_reason() {
        let page = include_str!("../../docs/operations.md");
        for reason in berth_crds::conditions::Reason::ALL {
            assert!(page.contains(&format!("`{}`", reason.as_str())), "{}", reason.as_str());
        }
    }

    #[test]
    fn the_label_page_names_every_protected_domain() {
        let page = include_str!("../../docs/labels.md");
        for domain in names::PROTECTED_DOMAINS {
            assert!(page.contains(&format!("`{domain}`")), "{domain}");
        }
    }
}
