//! Wire messages to core types and back.
//!
//! To core is total where the wire allows nothing wrong, and fails with the field's name where it does. Unknown enum values of a newer
//! peer become the cautious known one.

mod checks;
mod gpus;
mod health;
mod node;
mod nvml;
mod pods;
mod samples;

use std::time::Duration;

pub use self::gpus::gpus;
pub use self::nvml::nvml_status;

/// A message that a peer of this protocol cannot have meant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("field {field}: {problem}")]
pub struct Malformed {
    /// Path of the field in the message.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

fn narrow<T: TryFrom<u32>>(field: &'static str, value: u32) -> Result<T, Malformed> {
    T::try_from(value).map_err(|_| Malformed {
        field,
        problem: format!("{value:#x} is out of range"),
    })
}

/// Most PCI functions, and GPUs known by PCI alone, of one node: far above any machine, virtual functions included.
pub const MOST_FUNCTIONS: usize = 4096;
/// Most GPUs that NVML lists on one node.
pub const MOST_GPUS: usize = 256;
/// Most MIG devices of one GPU; seven is what there is.
pub const MOST_MIG_DEVICES: usize = 64;

/// A list that is longer than any machine makes it is refused whole: whoever sends it is not to fill memory, nor to make work that grows
/// with its square.
fn at_most<T>(field: &'static str, list: Vec<T>, most: usize) -> Result<Vec<T>, Malformed> {
    if list.len() > most {
        return Err(Malformed {
            field,
            problem: format!("has {} entries, at most {most} can be meant", list.len()),
        });
    }
    Ok(list)
}

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Both ways between a type of core and the message with the same fields, each named once: those that are as they are in either, those that
/// may be absent and have a conversion of their own (`maybe`), and what is written differently (`but`).
macro_rules! alike {
    ($core:ty = $wire:ty { $($field:ident),* $(,)? } $(maybe { $($inner:ident),* $(,)? })?) => {
        $crate::convert::alike!($core = $wire { $($field),* } $(maybe { $($inner),* })? but |it| to wire {} to core {});
    };
    (
        $core:ty = $wire:ty { $($field:ident),* $(,)? } $(maybe { $($inner:ident),* $(,)? })?
        but |$it:ident| to wire { $($to:ident: $there:expr),* $(,)? } to core { $($from:ident: $back:expr),* $(,)? }
    ) => {
        impl From<$core> for $wire {
            fn from($it: $core) -> Self {
                Self { $($to: $there,)* $($field: $it.$field,)* $($($inner: $it.$inner.map(Into::into),)*)? }
            }
        }

        impl From<$wire> for $core {
            fn from($it: $wire) -> Self {
                Self { $($from: $back,)* $($field: $it.$field,)* $($($inner: $it.$inner.map(Into::into),)*)? }
            }
        }
    };
}
use alike;
