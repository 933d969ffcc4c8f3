//! Kubernetes' own rules of where a pod may go, word for word: requirements of node selectors, taints, host ports.

use super::ask::{Operator, Requirement, Toleration};
use super::node::Taint;

/// A host port: protocol, IP, port.
pub type HostPort = (String, String, u16);

/// What stands for every address of a node in a host port.
const ANY_ADDRESS: &str = "0.0.0.0";
/// The taint that `spec.unschedulable` amounts to.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

impl Requirement {
    /// Whether it holds for the value of its key; `None`: there is no such key.
    pub fn holds(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|w| w == v);
        match (self.operator, value) {
            (Operator::In, Some(v)) => listed(v),
            (Operator::NotIn, Some(v)) => !listed(v),
            (Operator::Exists, value) => value.is_some(),
            (Operator::DoesNotExist, value) => value.is_none(),
            (Operator::Gt, Some(v)) => self.compared(v, |value, bound| value > bound),
            (Operator::Lt, Some(v)) => self.compared(v, |value, bound| value < bound),
            (Operator::In | Operator::Gt | Operator::Lt, None) => false,
            (Operator::NotIn, None) => true,
        }
    }

    /// Both sides as integers; what is no integer compares to nothing.
    fn compared(&self, value: &str, holds: impl Fn(i64, i64) -> bool) -> bool {
        let [bound] = self.values.as_slice() else { return false };
        match (value.parse(), bound.parse()) {
            (Ok(value), Ok(bound)) => holds(value, bound),
            _ => false,
        }
    }
}

impl Toleration {
    /// Whether it tolerates the taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.covers(&taint.key, &taint.value, &taint.effect)
    }

    fn covers(&self, key: &str, value: &str, effect: &str) -> bool {
        self.effect.as_deref().is_none_or(|e| e == effect)
            && self.key.as_deref().is_none_or(|k| k == key)
            && self.value.as_deref().is_none_or(|v| v == value)
    }
}

/// The first taint that keeps a pod with these tolerations away.
pub fn untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration]) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"))
        .find(|t| !tolerations.iter().any(|toleration| toleration.tolerates(t)))
}

/// How many `PreferNoSchedule` taints are not tolerated.
pub fn avoidable(taints: &[Taint], tolerations: &[Toleration]) -> usize {
    taints
        .iter()
        .filter(|t| t.effect == "PreferNoSchedule")
        .filter(|t| !tolerations.iter().any(|toleration| toleration.tolerates(t)))
        .count()
}

/// Whether a pod may go to a cordoned node all the same.
pub fn tolerates_cordon(tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|t| t.covers(UNSCHEDULABLE, "", "NoSchedule"))
}

/// Whether two host ports cannot both be had on one node.
pub fn ports_clash(a: &HostPort, b: &HostPort) -> bool {
    a.2 == b.2 && a.0 == b.0 && (a.1 == b.1 || a.1 == ANY_ADDRESS || b.1 == ANY_ADDRESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(key: &str, operator: Operator, values: &[&str]) -> Requirement {
        Requirement {
            key: key.into(),
            operator,
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        }
    }

    #[test]
    fn requirements_hold_as_in_kubernetes() {
        for (operator, values, value, want) in [
            (Operator::In, vec!["a", "b"], Some("b"), true),
            (Operator::In, vec!["a"], Some("c"), false),
            (Operator::In, vec!["a"], None, false),
            (Operator::NotIn, vec!["a"], Some("c"), true),
            (Operator::NotIn, vec!["a"], Some("a"), false),
            (Operator::NotIn, vec!["a"], None, true),
            (Operator::Exists, vec![], Some(""), true),
            (Operator::Exists, vec![], None, false),
            (Operator::DoesNotExist, vec![], None, true),
            (Operator::DoesNotExist, vec![], Some("x"), false),
            (Operator::Gt, vec!["7"], Some("8"), true),
            (Operator::Gt, vec!["7"], Some("7"), false),
            (Operator::Gt, vec!["7"], Some("seven"), false),
            (Operator::Gt, vec!["7", "8"], Some("9"), false),
            (Operator::Gt, vec!["7"], None, false),
            (Operator::Lt, vec!["7"], Some("-3"), true),
            (Operator::Lt, vec!["7"], Some("10"), false),
            (Operator::Lt, vec!["7"], None, false),
        ] {
            let r = requirement("k", operator, &values);
            assert_eq!(r.holds(value), want, "{operator:?} {values:?} against {value:?}");
        }
    }

    #[test]
    fn tolerations_match_taints_as_in_kubernetes() {
        let taint = Taint {
            key: "k".into(),
            value: "v".into(),
            effect: "NoSchedule".into(),
        };
        let toleration = |key: Option<&str>, value: Option<&str>, effect: Option<&str>| Toleration {
            key: key.map(Into::into),
            value: value.map(Into::into),
            effect: effect.map(Into::into),
        };
        for (t, want) in [
            (toleration(None, None, None), true),
            (toleration(Some("k"), None, None), true),
            (toleration(Some("k"), Some("v"), None), true),
            (toleration(Some("k"), Some("w"), None), false),
            (toleration(Some("k"), Some("v"), Some("NoSchedule")), true),
            (toleration(Some("k"), Some("v"), Some("NoExecute")), false),
            (toleration(Some("l"), None, None), false),
        ] {
            assert_eq!(t.tolerates(&taint), want, "{t:?}");
        }
        let prefer = Taint {
            effect: "PreferNoSchedule".into(),
            ..taint.clone()
        };
        assert_eq!(untolerated(std::slice::from_ref(&prefer), &[]), None);
        assert_eq!(avoidable(&[prefer, taint.clone()], &[]), 1);
        assert_eq!(untolerated(std::slice::from_ref(&taint), &[]), Some(&taint));
    }

    #[test]
    fn cordoned_nodes_are_open_to_those_who_tolerate_the_taint_of_it() {
        let t = |key: Option<&str>| Toleration {
            key: key.map(Into::into),
            ..Toleration::default()
        };
        assert!(!tolerates_cordon(&[t(Some("other"))]));
        assert!(tolerates_cordon(&[t(Some(UNSCHEDULABLE))]));
        assert!(tolerates_cordon(&[t(None)]), "a DaemonSet's toleration of everything");
    }

    #[test]
    fn host_ports_clash_on_one_address_or_on_all() {
        let port = |protocol: &str, ip: &str, port: u16| (protocol.to_owned(), ip.to_owned(), port);
        for (a, b, want) in [
            (port("TCP", "0.0.0.0", 80), port("TCP", "10.0.0.1", 80), true),
            (port("TCP", "10.0.0.2", 80), port("TCP", "10.0.0.1", 80), false),
            (port("TCP", "10.0.0.1", 80), port("TCP", "10.0.0.1", 80), true),
            (port("UDP", "0.0.0.0", 80), port("TCP", "0.0.0.0", 80), false),
            (port("TCP", "0.0.0.0", 81), port("TCP", "0.0.0.0", 80), false),
        ] {
            assert_eq!(ports_clash(&a, &b), want, "{a:?} {b:?}");
        }
    }
}
