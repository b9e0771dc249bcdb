//! Stand-ins for faulty and missing values, so that reading can go on to the next fault.

use std::collections::BTreeMap;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::reader::Fault;

/// Texts tried in turn where a text is expected: one for each kind of checked text in our configurations.
const TEXTS: [&str; 14] = [
    "",
    "a",
    "a.example",
    "127.0.0.1:1",
    "127.0.0.1",
    "1s",
    "1KiB",
    "https://a.example",
    "a@a.example",
    "a:a",
    "1970-01-01T00:00:00Z",
    "00000000-0000-7000-8000-000000000000",
    "sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "/a",
];

/// Places whose value is replaced, each with the stand-in now being tried.
#[derive(Debug, Default)]
pub(super) struct Holes(BTreeMap<String, usize>);

/// What a fault teaches.
pub(super) enum Learned {
    /// It was not known.
    NewFault,
    /// It is a stand-in's fault; another one will be tried.
    NextStandIn,
    /// No stand-in suits that place: faults behind it stay unseen.
    NothingFits,
}

impl Holes {
    pub(super) fn at(&self, path: &str) -> Option<StandIn> {
        self.0.get(path).map(|candidate| StandIn {
            candidate: *candidate,
        })
    }

    /// Keys of the table at `path` that are replaced although the table may lack them.
    pub(super) fn directly_below<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.keys().filter_map(move |hole| match hole.rsplit_once('.') {
            Some((parent, key)) => (parent == path).then_some(key),
            None => path.is_empty().then_some(hole.as_str()),
        })
    }

    /// Whether a finding about `key` may be about a stand-in: at the key itself, around it, or beside it in a table
    /// other than the outermost.
    pub(super) fn touch(&self, key: &str) -> bool {
        let table = key.rsplit_once('.').map(|(table, _)| table);
        self.lie_below(key)
            || self.0.keys().any(|hole| is_below(key, hole))
            || table.is_some_and(|table| {
                self.0
                    .keys()
                    .any(|hole| hole.rsplit_once('.').is_some_and(|(around, _)| around == table))
            })
    }

    /// Whether there is a stand-in at `key` or below it.
    pub(super) fn lie_below(&self, key: &str) -> bool {
        self.0.keys().any(|hole| is_below(hole, key))
    }

    pub(super) fn learn(&mut self, fault: &Fault) -> Learned {
        // A fault inside a stand-in (a missing key of a missing table) is the stand-in's.
        let around = self.0.iter_mut().find(|(hole, _)| {
            fault.path == **hole
                || fault
                    .path
                    .strip_prefix(hole.as_str())
                    .is_some_and(|rest| rest.starts_with('.'))
        });
        match around {
            None => {
                self.0.insert(fault.path.clone(), 0);
                Learned::NewFault
            }
            Some((_, candidate)) if *candidate + 1 < TEXTS.len() => {
                *candidate += 1;
                Learned::NextStandIn
            }
            Some(_) => Learned::NothingFits,
        }
    }
}

fn is_below(key: &str, section: &str) -> bool {
    key.strip_prefix(section)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Gives whatever type it is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StandIn {
    candidate: usize,
}

impl StandIn {
    fn text(self) -> &'static str {
        TEXTS.get(self.candidate).copied().unwrap_or_default()
    }
}

impl<'de> Deserializer<'de> for StandIn {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_str(self.text())
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_bool(false)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_u8(1)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_u16(1)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_u32(1)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_u64(1)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_i8(1)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_i16(1)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_i32(1)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_i64(1)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_f32(1.0)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_f64(1.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_none()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_seq(serde::de::value::SeqDeserializer::new(std::iter::empty::<&str>()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_map(Fields {
            remaining: [].iter(),
            value: self,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_map(Fields {
            remaining: fields.iter(),
            value: self,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_enum(FirstVariant {
            name: variants.first().copied().unwrap_or_default(),
            value: self,
        })
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// A table with every key its type has.
struct Fields {
    remaining: std::slice::Iter<'static, &'static str>,
    value: StandIn,
}

impl<'de> serde::de::MapAccess<'de> for Fields {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        match self.remaining.next() {
            Some(key) => seed.deserialize((*key).into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        seed.deserialize(self.value)
    }
}

struct FirstVariant {
    name: &'static str,
    value: StandIn,
}

impl<'de> EnumAccess<'de> for FirstVariant {
    type Error = Fault;
    type Variant = StandIn;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, StandIn), Fault> {
        let name: serde::de::value::StrDeserializer<'_, Fault> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self.value))
    }
}

impl<'de> VariantAccess<'de> for StandIn {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fault> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_struct("", fields, visitor)
    }
}
