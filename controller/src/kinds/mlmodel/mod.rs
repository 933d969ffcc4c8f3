//! MLModel: a model that is downloaded into a volume and served from there.

pub mod download;
