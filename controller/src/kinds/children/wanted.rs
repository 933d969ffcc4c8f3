//! What becomes of a child.

use serde::Serialize;
use serde_json::Value;

/// What becomes of a child.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted<T> {
    /// It is to be like this.
    Like(Box<T>),
    /// It stays as it is, and is not made.
    Left,
    /// There is to be none.
    Gone,
}

impl<T> Wanted<T> {
    /// It is to be like this.
    pub fn like(object: T) -> Self {
        Self::Like(Box::new(object))
    }
}

impl<T: Serialize> Wanted<T> {
    /// As it is sent.
    pub fn value(self) -> Wanted<Value> {
        match self {
            Self::Like(object) => {
                let value = serde_json::to_value(object).expect("plain data with text keys always serialises");
                Wanted::like(value)
            }
            Self::Left => Wanted::Left,
            Self::Gone => Wanted::Gone,
        }
    }
}
