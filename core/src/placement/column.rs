//! One label of all nodes, each of its values kept once: whether a requirement holds is asked of a few values instead of every node.

use std::collections::HashMap;

/// The label of one key.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// Every value once. The first stands for "no such label".
    values: Vec<Option<String>>,
    /// Value → its place in `values`.
    places: HashMap<String, usize>,
    /// Of each node, the place of its value in `values`.
    of_nodes: Vec<usize>,
}

impl Column {
    /// Of nodes with these values.
    pub fn new<'a>(of_nodes: impl Iterator<Item = Option<&'a str>>) -> Self {
        let mut column = Self {
            values: vec![None],
            places: HashMap::new(),
            of_nodes: Vec::new(),
        };
        for value in of_nodes {
            let place = column.place(value);
            column.of_nodes.push(place);
        }
        column
    }

    /// The node now has this value.
    pub fn set(&mut self, node: usize, value: Option<&str>) {
        self.of_nodes[node] = self.place(value);
    }

    /// Whether no node has the label.
    pub fn is_empty(&self) -> bool {
        self.values.len() == 1
    }

    /// For each node whether it holds of its value; `None`: of none.
    pub fn answers(&self, holds: impl Fn(Option<&str>) -> bool) -> Vec<bool> {
        let of_values: Vec<bool> = self.values.iter().map(|v| holds(v.as_deref())).collect();
        self.of_nodes.iter().map(|place| of_values[*place]).collect()
    }

    fn place(&mut self, value: Option<&str>) -> usize {
        let Some(value) = value else { return 0 };
        if let Some(place) = self.places.get(value) {
            return *place;
        }
        let place = self.values.len();
        self.values.push(Some(value.to_owned()));
        self.places.insert(value.to_owned(), place);
        place
    }
}
