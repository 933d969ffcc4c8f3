//! What to do about the stored material: pure.

use std::time::Duration;

use jiff::Timestamp;

use super::material::{Damage, Material};

/// How long a new CA is published before a leaf of it is served: a kubelet refreshes a mounted ConfigMap within two minutes, agents read
/// it again on each connect.
pub const PUBLISH_FOR: Duration = Duration::from_secs(600);

/// What was found in the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// No Secret.
    Missing,
    /// A Secret whose CA cannot be used.
    Damaged(Damage),
    /// Usable, the leaf perhaps not.
    Good(Box<Material>),
}

/// The next step. One at a time: the loop looks again at once after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// All is well.
    Nothing,
    /// Nothing usable is left: a new CA and leaf. Agents connect again once their CA mount has been refreshed.
    MintAll,
    /// The Secret is gone or damaged, but this process still holds good material: write it back together with a new CA, so that no
    /// agent is cut off and whoever deleted the Secret in order to rotate gets what he wanted.
    WriteBackAndRotate,
    /// A new leaf of the same CA.
    MintLeaf,
    /// A new CA, published beside the old one.
    MintNext,
    /// The published new CA signs from now on.
    Promote,
}

/// `held` is what this process served until now; `next_published_for` is how long the stored next CA has been in the ConfigMap without
/// a break, as far as this process saw it.
pub fn next_step(
    stored: &Stored,
    held: Option<&Material>,
    next_published_for: Option<Duration>,
    now: Timestamp,
) -> Step {
    let material = match stored {
        Stored::Missing | Stored::Damaged(_) => {
            let usable = held.is_some_and(|h| !h.signing.certificate.is_expired(now) && h.leaf.is_ok());
            return if usable {
                Step::WriteBackAndRotate
            } else {
                Step::MintAll
            };
        }
        Stored::Good(material) => material,
    };
    let signing = &material.signing.certificate;
    match (&material.next, next_published_for) {
        // Nothing is left to lose: no agent trusts the old one any more.
        (Some(_), _) if signing.is_expired(now) => Step::Promote,
        (Some(_), Some(published)) if published >= PUBLISH_FOR => Step::Promote,
        (None, _) if signing.is_expired(now) => Step::MintAll,
        _ if material.leaf.as_ref().is_ok_and(|l| !l.certificate.is_aged(now)) => match material.next {
            None if signing.is_aged(now) => Step::MintNext,
            _ => Step::Nothing,
        },
        _ => Step::MintLeaf,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::material::{CA_LIFE, LEAF_LIFE};

    const NAMES: [&str; 2] = ["berth-controller.quay.svc", "localhost"];

    fn names() -> Vec<String> {
        NAMES.map(String::from).to_vec()
    }

    fn start() -> Timestamp {
        Timestamp::constant(1_800_000_000, 0)
    }

    /// What comes back out of a Secret.
    fn stored(material: &Material, now: Timestamp) -> Stored {
        let data = material.to_data().into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        match Material::from_data(&data, &names(), now) {
            Ok(m) => Stored::Good(Box::new(m)),
            Err(damage) => Stored::Damaged(damage),
        }
    }

    #[test]
    fn steps() {
        let minted = Material::mint(&names(), start()).unwrap();
        let rotating = minted.clone().with_next(start()).unwrap();
        let day = Duration::from_secs(86400);
        let damaged = Stored::Damaged(Damage {
            what: "ca.crt",
            problem: "is missing".into(),
        });
        let at = |m: &Material, d: u32| stored(m, start() + day * d);
        let renewed = |d: u32| minted.clone().with_new_leaf(&names(), start() + day * d).unwrap();
        // What it is called, what is stored, what is held, seconds that the next CA was published, days gone by, the step.
        type Case<'a> = (&'a str, Stored, Option<&'a Material>, Option<u64>, u32, Step);
        let cases: &[Case<'_>] = &[
            ("no Secret", Stored::Missing, None, None, 0, Step::MintAll),
            (
                "deleted by hand",
                Stored::Missing,
                Some(&minted),
                None,
                1,
                Step::WriteBackAndRotate,
            ),
            (
                "deleted, held CA expired",
                Stored::Missing,
                Some(&minted),
                None,
                366,
                Step::MintAll,
            ),
            ("damaged, nothing held", damaged.clone(), None, None, 0, Step::MintAll),
            (
                "damaged, good held",
                damaged,
                Some(&minted),
                None,
                1,
                Step::WriteBackAndRotate,
            ),
            ("fresh", at(&minted, 0), None, None, 0, Step::Nothing),
            ("leaf at 59 days", at(&minted, 59), None, None, 59, Step::Nothing),
            ("leaf at 60 days", at(&minted, 60), None, None, 60, Step::MintLeaf),
            ("leaf expired", at(&minted, 91), None, None, 91, Step::MintLeaf),
            (
                "CA aged, leaf fresh",
                at(&renewed(243), 244),
                None,
                None,
                244,
                Step::MintNext,
            ),
            (
                "CA aged, leaf aged: leaf first",
                at(&renewed(180), 244),
                None,
                None,
                244,
                Step::MintLeaf,
            ),
            ("CA expired", at(&minted, 366), None, None, 366, Step::MintAll),
            ("next not published", at(&rotating, 1), None, None, 1, Step::Nothing),
            (
                "next published for a while",
                at(&rotating, 1),
                None,
                Some(599),
                1,
                Step::Nothing,
            ),
            (
                "next published long enough",
                at(&rotating, 1),
                None,
                Some(600),
                1,
                Step::Promote,
            ),
            (
                "CA expired while rotating",
                at(&rotating, 366),
                None,
                None,
                366,
                Step::Promote,
            ),
        ];
        for (name, stored, held, published, days, want) in cases {
            let now = start() + day * *days;
            let got = next_step(stored, *held, published.map(Duration::from_secs), now);
            assert_eq!(got, *want, "{name}");
        }
    }

    #[test]
    fn a_rotation_never_serves_a_leaf_of_an_unpublished_ca() {
        let before = Material::mint(&names(), start()).unwrap();
        let announced = before.clone().with_next(start()).unwrap();
        let after = announced.clone().promoted(&names(), start()).unwrap();
        let old = before.signing.certificate.pem();
        let new = after.signing.certificate.pem();
        assert_ne!(old, new);
        assert!(
            announced.published(start()).contains(&new),
            "published while the old one signs"
        );
        assert_eq!(announced.leaf, before.leaf);
        assert!(after.published(start()).contains(&old), "published after it signed");
        assert!(
            matches!(stored(&after, start()), Stored::Good(m) if *m == after),
            "the new leaf verifies under the new CA"
        );
        let late = start() + CA_LIFE;
        assert_eq!(after.published(late), "", "expired CAs are not published");
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        assert!(CA_LIFE / 3 > LEAF_LIFE);
    }

    #[test]
    fn damage_is_told() {
        let good = Material::mint(&names(), start()).unwrap();
        let other = Material::mint(&names(), start()).unwrap();
        let read = |change: &dyn Fn(&mut std::collections::BTreeMap<String, k8s_openapi::ByteString>)| {
            let mut data = good.to_data().into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            change(&mut data);
            Material::from_data(&data, &names(), start())
        };
        assert_eq!(read(&|_| {}).unwrap(), good);
        let set = |key: &'static str, value: &str| {
            let value = k8s_openapi::ByteString(value.as_bytes().to_vec());
            read(&|d| drop(d.insert(key.to_owned(), value.clone())))
        };
        assert_eq!(
            read(&|d| drop(d.remove("ca.crt"))).unwrap_err().to_string(),
            "ca.crt: is missing"
        );
        assert_eq!(
            set("ca.crt", "garbage").unwrap_err().to_string(),
            "ca.crt: holds no certificate"
        );
        assert_eq!(set("ca.key", "garbage").unwrap_err().what, "ca.key");
        let swapped = set("ca.key", &other.signing.key).unwrap_err().to_string();
        assert_eq!(swapped, "ca.key: does not belong to the certificate");
        for (name, broken) in [
            ("garbage leaf", set("tls.crt", "garbage")),
            ("no leaf key", read(&|d| drop(d.remove("tls.key")))),
            ("leaf key of another", set("tls.key", &other.leaf.clone().unwrap().key)),
            ("leaf of another CA", {
                let leaf = other.leaf.clone().unwrap();
                read(&|d| {
                    d.insert(
                        "tls.crt".into(),
                        k8s_openapi::ByteString(leaf.certificate.pem().into_bytes()),
                    );
                    d.insert("tls.key".into(), k8s_openapi::ByteString(leaf.key.clone().into_bytes()));
                })
            }),
        ] {
            let material = broken.unwrap();
            assert!(material.leaf.is_err(), "{name}");
            assert_eq!(
                next_step(&Stored::Good(Box::new(material)), None, None, start()),
                Step::MintLeaf,
                "{name}"
            );
        }
        let renamed = ["berth-controller.other.svc".to_owned()];
        let data = good.to_data().into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        assert!(
            Material::from_data(&data, &renamed, start()).unwrap().leaf.is_err(),
            "another name"
        );
        assert!(
            set("ca-next.crt", "garbage").unwrap().next.is_none(),
            "a damaged next CA is dropped"
        );
    }
}
