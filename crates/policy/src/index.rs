//! Which rules may be about a service, found without looking at the others.

use std::collections::HashMap;

use iap_identity::ServiceName;

use crate::facts::ServiceFacts;
use crate::rule::Rule;

/// Rules by service name, else by one of their labels, else all the time. Values are positions in
/// the document's list of rules.
#[derive(Debug, Default)]
pub(crate) struct RuleIndex {
    by_name: HashMap<ServiceName, Vec<usize>>,
    by_label: HashMap<String, HashMap<String, Vec<usize>>>,
    always: Vec<usize>,
}

impl RuleIndex {
    pub(crate) fn new(rules: &[Rule]) -> Self {
        let mut index = Self::default();
        for (position, rule) in rules.iter().enumerate() {
            index.add(position, rule);
        }
        index
    }

    fn add(&mut self, position: usize, rule: &Rule) {
        if let Some(names) = &rule.services.names {
            for name in names {
                self.by_name.entry(name.clone()).or_default().push(position);
            }
        } else if let Some((label, value)) = rule.services.labels.iter().next() {
            let values = self.by_label.entry(label.clone()).or_default();
            values.entry(value.clone()).or_default().push(position);
        } else {
            self.always.push(position);
        }
    }

    /// Positions of the rules whose service selector may match, ascending.
    pub(crate) fn candidates(&self, service: &ServiceFacts) -> Vec<usize> {
        let mut positions = self.always.clone();
        positions.extend(self.by_name.get(&service.name).into_iter().flatten());
        for (label, value) in &service.labels {
            let rules = self.by_label.get(label).and_then(|values| values.get(value));
            positions.extend(rules.into_iter().flatten());
        }
        // Each rule is under one key only (names are deduplicated), so nothing occurs twice.
        positions.sort_unstable();
        positions
    }
}
