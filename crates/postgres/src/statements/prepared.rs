//! Prepared statements and portals, as the backend has confirmed them.

use std::collections::HashMap;

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
    pub values: Option<Vec<Option<String>>>,
    /// Whether some are cut or left out.
    pub truncated: bool,
}

#[derive(Debug, Default)]
pub(super) struct Registered {
    statements: HashMap<String, Prepared>,
    portals: HashMap<String, Portal>,
    kept_bytes: usize,
    portal_bytes: usize,
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
        if self.portal_bytes + bound.kept_bytes() > KEPT_BYTES_MAX {
            bound.parameters.values = None;
            bound.parameters.truncated = true;
        }
        if self.portals.len() < ENTRIES_MAX {
            self.portal_bytes += bound.kept_bytes();
            self.portals.insert(portal, bound);
        }
    }

    /// What a portal made of these would be.
    pub(super) fn bound(&self, statement: String, values: &Values) -> Portal {
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

    pub(super) fn portal(&self, name: &str) -> Option<Portal> {
        self.portals.get(name).cloned()
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

impl Prepared {
    fn kept_bytes(&self) -> usize {
        self.text.text.len() + 4 * self.types.len()
    }
}

impl Portal {
    /// The texts of statements are shared with what they were prepared as.
    fn kept_bytes(&self) -> usize {
        let of = |value: &Option<String>| size_of::<String>() + value.as_ref().map_or(0, String::len);
        let values = self.parameters.values.as_ref();
        values.map_or(0, |values| values.iter().map(of).sum())
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
