//! Everything that an AIModelMap is decided on, besides itself: read from what is watched, so that a look costs no request.

use crate::cluster::ObjectKey;
use crate::kinds::children::{Child, Children, Kind};

/// The surroundings of one AIModelMap.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Its ConfigMap, if there is one with our label.
    pub config_map: Option<Child>,
}

/// Reads the surroundings.
pub fn fetch(key: &ObjectKey, children: &Children) -> Observed {
    Observed {
        config_map: children.get(Kind::ConfigMap, key),
    }
}
