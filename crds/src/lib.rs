//! Types of the kinds that Berth serves, with their names, defaults, conditions and reasons. No client, no runtime.
//!
//! - [`access`]: what the controller does on each API: the source of its RBAC and of its admission policies
//! - [`names`]: labels, annotations, the gate, field managers, protected domains
//! - [`conditions`]: condition types, the closed list of reasons, and how a condition list changes
//! - [`premlabs`]: the group `premlabs.io/v1alpha1`
//! - [`youxam`]: the group `model.youxam.com/v1alpha1`
//! - [`tmforum`]: the group `oda.tmforum.org.oda.tmforum.org/v1beta1`
//! - [`schema`]: what is done to a generated CRD before it is written as YAML

pub mod access;
pub mod conditions;
pub mod names;
pub mod premlabs;
pub mod schema;
pub mod tmforum;
pub mod youxam;
