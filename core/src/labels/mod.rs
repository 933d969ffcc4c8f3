//! Node labels from hardware facts.
