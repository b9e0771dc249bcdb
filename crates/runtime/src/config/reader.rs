//! Reads a TOML table into a type, knowing at every step which dotted key it is at.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use toml::{Table, Value};

use super::stand_in::{Holes, StandIn};
use super::suggest::{listed, nearest};

/// A value that does not fit, or a key that is missing.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) path: String,
    pub(super) message: String,
    placed: bool,
    missing: Option<&'static str>,
}

/// A key its table does not have.
pub(super) struct UnknownKey {
    pub(super) key: String,
    pub(super) message: String,
}

pub(super) struct Attempt<T> {
    pub(super) result: Result<T, Fault>,
    pub(super) unknown_keys: Vec<UnknownKey>,
}

/// Reads `table`, with stand-ins at `holes`.
pub(super) fn read<T: DeserializeOwned>(table: &Table, holes: &Holes) -> Attempt<T> {
    let unknown = RefCell::new(Vec::new());
    let context = Context {
        holes,
        unknown: &unknown,
    };
    let result = T::deserialize(TableReader {
        table,
        path: String::new(),
        context,
    });
    let result = result.map_err(|fault| fault.placed_at(""));
    Attempt {
        result,
        unknown_keys: unknown.into_inner(),
    }
}

impl Fault {
    /// The innermost place that knows its path wins.
    fn placed_at(mut self, path: &str) -> Self {
        if !self.placed {
            self.path = match self.missing {
                Some(key) => join(path, key),
                None => path.to_owned(),
            };
            self.placed = true;
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl serde::de::Error for Fault {
    fn custom<M: fmt::Display>(message: M) -> Self {
        Self {
            path: String::new(),
            message: message.to_string(),
            placed: false,
            missing: None,
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            missing: Some(field),
            ..Self::custom("missing, and it has no default")
        }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format!("{variant:?} is not one of {}", listed(expected)))
    }
}

#[derive(Clone, Copy)]
struct Context<'a> {
    holes: &'a Holes,
    unknown: &'a RefCell<Vec<UnknownKey>>,
}

struct TableReader<'a> {
    table: &'a Table,
    path: String,
    context: Context<'a>,
}

impl<'a> TableReader<'a> {
    fn entries(&self) -> Entries<'a> {
        let present = self.table.iter().map(|(key, value)| (key.clone(), Some(value)));
        let missing = self
            .context
            .holes
            .directly_below(&self.path)
            .filter(|key| !self.table.contains_key(*key));
        let missing: Vec<_> = missing.map(|key| (key.to_owned(), None)).collect();
        let all: Vec<_> = present.chain(missing).collect();
        Entries {
            remaining: all.into_iter(),
            current: None,
            path: self.path.clone(),
            context: self.context,
        }
    }

    fn note_unknown(&self, fields: &'static [&'static str]) {
        for key in self.table.keys().filter(|key| !fields.contains(&key.as_str())) {
            let hint = nearest(key, fields)
                .map(|near| format!("; did you mean {near:?}?"))
                .unwrap_or_default();
            let message = format!("unknown key{hint} Allowed here: {}", listed(fields));
            let message = if hint.is_empty() {
                message.replacen(" Allowed", "; allowed", 1)
            } else {
                message
            };
            self.context.unknown.borrow_mut().push(UnknownKey {
                key: join(&self.path, key),
                message,
            });
        }
    }
}

impl<'de> Deserializer<'de> for TableReader<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_map(self.entries())
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.note_unknown(fields);
        let mut entries = self.entries();
        entries.keep_only(fields);
        visitor.visit_map(entries)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let mut entries = self.table.iter();
        match (entries.next(), entries.next()) {
            (Some((name, value)), None) => {
                let value = ValueReader {
                    value,
                    path: join(&self.path, name),
                    context: self.context,
                };
                visitor.visit_enum(OneVariant {
                    name,
                    value: Some(value),
                })
            }
            (Some(_), Some(_)) | (None, _) => Err(Fault::custom("expected a table with exactly one key")),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

/// A table's entries; those without a value are holes in a key that is missing.
struct Entries<'a> {
    remaining: std::vec::IntoIter<(String, Option<&'a Value>)>,
    current: Option<(String, Option<&'a Value>)>,
    path: String,
    context: Context<'a>,
}

impl Entries<'_> {
    fn keep_only(&mut self, fields: &[&str]) {
        let kept: Vec<_> = self
            .remaining
            .by_ref()
            .filter(|(key, _)| fields.contains(&key.as_str()))
            .collect();
        self.remaining = kept.into_iter();
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.current = self.remaining.next();
        let Some((key, _)) = &self.current else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, Fault> = key.as_str().into_deserializer();
        seed.deserialize(name)
            .map(Some)
            .map_err(|fault| fault.placed_at(&join(&self.path, key)))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let (key, value) = self
            .current
            .take()
            .ok_or_else(|| Fault::custom("value before key"))?;
        read_at(seed, value, join(&self.path, &key), self.context)
    }
}

struct Elements<'a> {
    remaining: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
    path: String,
    context: Context<'a>,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some((index, value)) = self.remaining.next() else {
            return Ok(None);
        };
        read_at(
            seed,
            Some(value),
            join(&self.path, &index.to_string()),
            self.context,
        )
        .map(Some)
    }
}

fn read_at<'de, S: DeserializeSeed<'de>>(
    seed: S,
    value: Option<&Value>,
    path: String,
    context: Context<'_>,
) -> Result<S::Value, Fault> {
    let read = match (context.holes.at(&path), value) {
        (None, Some(value)) => seed.deserialize(ValueReader {
            value,
            path: path.clone(),
            context,
        }),
        (Some(stand_in), _) => seed.deserialize(stand_in),
        (None, None) => seed.deserialize(StandIn::default()),
    };
    read.map_err(|fault| fault.placed_at(&path))
}

struct ValueReader<'a> {
    value: &'a Value,
    path: String,
    context: Context<'a>,
}

impl<'a> ValueReader<'a> {
    fn as_table(&self) -> Option<TableReader<'a>> {
        match self.value {
            Value::Table(table) => Some(TableReader {
                table,
                path: self.path.clone(),
                context: self.context,
            }),
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_) => None,
        }
    }
}

impl<'de> Deserializer<'de> for ValueReader<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(truth) => visitor.visit_bool(*truth),
            Value::Datetime(moment) => visitor.visit_str(&moment.to_string()),
            Value::Array(elements) => visitor.visit_seq(Elements {
                remaining: elements.iter().enumerate(),
                path: self.path,
                context: self.context,
            }),
            Value::Table(table) => TableReader {
                table,
                path: self.path,
                context: self.context,
            }
            .deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.as_table() {
            Some(table) => table.deserialize_struct(name, fields, visitor),
            None => Err(Fault::custom(format!(
                "expected a table with the keys {}",
                listed(fields)
            ))),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match (self.as_table(), self.value) {
            (Some(table), _) => table.deserialize_enum(name, variants, visitor),
            (None, Value::String(variant)) => visitor.visit_enum(OneVariant {
                name: variant,
                value: None,
            }),
            (None, _) => Err(Fault::custom(format!("expected one of {}", listed(variants)))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

struct OneVariant<'a> {
    name: &'a str,
    value: Option<ValueReader<'a>>,
}

impl<'a, 'de> EnumAccess<'de> for OneVariant<'a> {
    type Error = Fault;
    type Variant = VariantContent<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), Fault> {
        let name: StrDeserializer<'_, Fault> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, VariantContent(self.value)))
    }
}

struct VariantContent<'a>(Option<ValueReader<'a>>);

impl<'a> VariantContent<'a> {
    fn present(self) -> Result<ValueReader<'a>, Fault> {
        self.0.ok_or_else(|| Fault::custom("this choice needs a value"))
    }
}

impl<'de> VariantAccess<'de> for VariantContent<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.0 {
            None => Ok(()),
            Some(_) => Err(Fault::custom("this choice takes no value")),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fault> {
        seed.deserialize(self.present()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.present()?.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.present()?.deserialize_struct("", fields, visitor)
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}
