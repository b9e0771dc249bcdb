//! Prepared statements and portals, as the backend has confirmed them.

use std::collections::HashMap;
use std::sync::Arc;

use super::queue::Values;
use crate::capture::Captured;
use crate::values::text_of;

/// Statements and portals that are remembered; what is beyond is told by its name alone.
const ENTRIES_MAX: usize = 10_000;
/// What is remembered of their texts.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// A prepared statement.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) text: Captured,
    pub(super) types: Vec<u32>,
}

/// A statement with its parameters.
#[derive(Debug, Clone)]
pub(super) struct Portal {
    statement: String,
    text: Option<Captured>,
    parameters: Parameters,
}

/// What was bound to a statement.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// How many; nothing where the message was too long to tell.
    pub count: Option<usize>,
    /// Their values, where these are kept: nothing for NULL.
    pub values: Option<Arc<[Option<String>]>>,
    /// Whether some are cut or left out.
    pub truncated: bool,
}

#[derive(Debug, Default)]
pub(super) struct Registered {
    statements: HashMap<String, Prepared>,
    portals: HashMap<String, Portal>,
    kept_bytes: usize,
    portal_bytes: usize,
    /// What the backend did not take, or has not taken yet: messages that it passes over speak of these.
    not_prepared: Option<(String, Captured)>,
    not_bound: Option<(String, Portal)>,
}

impl Registered {
    pub(super) fn prepare(&mut self, name: String, prepared: Prepared) {
        self.forget(&name);
        let bytes = name.len() + prepared.kept_bytes();
        // One that does not fit must not leave an older one of its name.
        if self.statements.len() < ENTRIES_MAX && self.kept_bytes + bytes <= KEPT_BYTES_MAX {
            self.kept_bytes += bytes;
            self.statements.insert(name, prepared);
        }
    }

    pub(super) fn describe(&mut self, name: &str, types: Vec<u32>) {
        if let Some(prepared) = self.statements.get_mut(name) {
            self.kept_bytes -= 4 * prepared.types.len();
            self.kept_bytes += 4 * types.len();
            prepared.types = types;
        }
    }

    pub(super) fn bind(&mut self, portal: String, statement: String, values: &Values) {
        self.forget_portal(&portal);
        let mut bound = self.bound(statement, values);
        let room = KEPT_BYTES_MAX - self.portal_bytes;
        if bound.kept_bytes() > room && bound.parameters.values.take().is_some() {
            bound.parameters.truncated = true;
        }
        if bound.kept_bytes() > room {
            bound.text = None;
        }
        if self.portals.len() < ENTRIES_MAX {
            self.portal_bytes += bound.kept_bytes();
            self.portals.insert(portal, bound);
        }
    }

    /// A text that is not what its name stands for. Where that failed, the unnamed one of before is gone nevertheless.
    pub(super) fn not_prepared(&mut self, name: &str, text: &Captured, has_failed: bool) {
        if name.is_empty() && has_failed {
            self.forget(name);
        }
        self.not_prepared = Some((name.to_owned(), text.clone()));
    }

    /// A portal that is none, of the text that its client meant.
    pub(super) fn not_bound(&mut self, portal: String, statement: String, values: &Values) -> Portal {
        let mut bound = self.bound(statement, values);
        if let Some((name, text)) = &self.not_prepared
            && *name == bound.statement
        {
            bound.text = Some(text.clone());
        }
        self.not_bound = Some((portal, bound.clone()));
        bound
    }

    /// The backend is ready: whatever it has not taken until now it never will.
    pub(super) fn settle(&mut self) {
        self.not_prepared = None;
        self.not_bound = None;
    }

    /// What a portal made of these would be.
    fn bound(&self, statement: String, values: &Values) -> Portal {
        let prepared = self.statements.get(&statement);
        let types = prepared
            .map(|prepared| prepared.types.as_slice())
            .unwrap_or_default();
        Portal {
            text: prepared.map(|prepared| prepared.text.clone()),
            parameters: values.told(types),
            statement,
        }
    }

    /// What runs by that name, or was to run where the backend has not come to that.
    pub(super) fn portal(&self, name: &str, was_bound: bool) -> Option<Portal> {
        let not_bound = self.not_bound.as_ref().filter(|(portal, _)| portal == name);
        match not_bound.filter(|_| !was_bound) {
            Some((_, portal)) => Some(portal.clone()),
            None => self.portals.get(name).cloned(),
        }
    }

    pub(super) fn close(&mut self, is_portal: bool, name: &str) {
        if is_portal {
            self.forget_portal(name);
        } else {
            self.forget(name);
        }
    }

    /// A simple query takes the place of what has no name.
    pub(super) fn drop_unnamed(&mut self) {
        self.forget("");
        self.forget_portal("");
    }

    /// They end with their transaction.
    pub(super) fn drop_portals(&mut self) {
        self.portals.clear();
        self.portal_bytes = 0;
    }

    /// Names can also be given and taken by statements: what they then stand for is not known.
    pub(super) fn see_tag(&mut self, tag: &str) {
        let first = tag.split(' ').next().unwrap_or_default();
        if matches!(first, "PREPARE" | "DEALLOCATE") || tag == "DISCARD ALL" {
            self.statements.clear();
            self.kept_bytes = 0;
        }
        // Cursors are portals.
        if matches!(first, "CLOSE" | "DECLARE") || tag == "DISCARD ALL" {
            self.drop_portals();
        }
    }

    fn forget_portal(&mut self, name: &str) {
        if let Some(portal) = self.portals.remove(name) {
            self.portal_bytes -= portal.kept_bytes();
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(prepared) = self.statements.remove(name) {
            self.kept_bytes -= name.len() + prepared.kept_bytes();
        }
    }
}

#[cfg(test)]
impl Registered {
    pub(super) fn texts_of_portals(&self) -> usize {
        let texts = self.portals.values().filter_map(|portal| portal.text.as_ref());
        texts.map(|text| text.text.len()).sum()
    }
}

impl Prepared {
    fn kept_bytes(&self) -> usize {
        self.text.text.len() + 4 * self.types.len()
    }
}

impl Portal {
    /// With its text, though that may be shared: what it was prepared as may be gone before it.
    fn kept_bytes(&self) -> usize {
        let text = self.text.as_ref().map_or(0, |text| text.text.len());
        let of = |value: &Option<String>| size_of::<String>() + value.as_ref().map_or(0, String::len);
        let values = self.parameters.values.as_ref();
        text + values.map_or(0, |values| values.iter().map(of).sum())
    }

    /// Its text, the name of its statement, its parameters.
    pub(super) fn told(self) -> (Option<Captured>, Option<String>, Option<Parameters>) {
        let has_parameters = self.parameters.count != Some(0);
        (
            self.text,
            super::named(self.statement),
            has_parameters.then_some(self.parameters),
        )
    }
}

impl Values {
    fn told(&self, types: &[u32]) -> Parameters {
        let values = self.values.as_ref().map(|values| {
            let told = values.iter().enumerate().map(|(index, value)| {
                let oid = types.get(index).copied().unwrap_or(0);
                let bytes = value.bytes.as_ref();
                bytes.map(|bytes| text_of(bytes, value.is_binary, oid, bytes.len()))
            });
            told.collect()
        });
        Parameters {
            count: self.count,
            values,
            truncated: self.truncated,
        }
    }
}
