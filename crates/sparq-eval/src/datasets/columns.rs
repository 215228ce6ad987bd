//! Text columns of parquet files.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};
use serde_json::{Map, Value};

use super::{open, wrong};
use crate::EvalError;

/// Reads text columns, including lists and structures of text. Calls `on_row` with the index of
/// each row and its content as a JSON object.
///
/// # Errors
/// If the file is not a parquet file, lacks a column, or a column holds something else than text.
/// Also returns errors of `on_row`.
pub(super) fn read(
    path: &Path,
    columns: &[&str],
    on_row: &mut dyn FnMut(usize, Value) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    // The parquet reader panics on some damaged files, and data sets are untrusted.
    let read = catch_unwind(AssertUnwindSafe(|| read_rows(path, columns, on_row)));
    read.unwrap_or_else(|_| {
        Err(wrong(
            path,
            "parquet",
            "expected a whole file, found a damaged one",
        ))
    })
}

fn read_rows(
    path: &Path,
    columns: &[&str],
    on_row: &mut dyn FnMut(usize, Value) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    let reader =
        SerializedFileReader::new(open(path)?).map_err(|error| wrong(path, "parquet", error))?;
    let schema = reader.metadata().file_metadata().schema();
    for column in columns {
        check(schema, column).map_err(|reason| wrong(path, format!("column {column}"), reason))?;
    }
    let wanted = project(schema, "", columns).map_err(|error| wrong(path, "schema", error))?;
    let wanted = wanted.map(|schema| schema.as_ref().clone());
    let rows = reader
        .get_row_iter(wanted)
        .map_err(|error| wrong(path, "parquet", error))?;
    for (index, row) in rows.enumerate() {
        let row = row.map_err(|error| wrong(path, format!("row {index}"), error))?;
        on_row(index, object(&row))?;
    }
    Ok(())
}

/// Checks that a column exists and holds only text.
fn check(schema: &Type, column: &str) -> Result<(), String> {
    let mut field = schema;
    for name in column.split('.') {
        let fields = match field {
            Type::GroupType { fields, .. } => fields.as_slice(),
            Type::PrimitiveType { .. } => &[],
        };
        field = fields
            .iter()
            .find(|field| field.name() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
                format!("expected such a column, found {}", names.join(", "))
            })?;
    }
    is_text(field)
}

fn is_text(field: &Type) -> Result<(), String> {
    if let Type::GroupType { fields, .. } = field {
        return fields.iter().try_for_each(|field| is_text(field));
    }
    let info = field.get_basic_info();
    let physical = field.get_physical_type();
    let is_string = matches!(info.logical_type_ref(), Some(LogicalType::String))
        || info.converted_type() == ConvertedType::UTF8;
    match physical == Physical::BYTE_ARRAY && is_string {
        true => Ok(()),
        false => Err(format!("expected text (UTF8), found {physical}")),
    }
}

/// Returns the part of a schema with the given columns, or `None` if it has none. Lists are read
/// whole.
fn project(field: &Type, path: &str, columns: &[&str]) -> parquet::errors::Result<Option<TypePtr>> {
    if columns.contains(&path) {
        return Ok(Some(Arc::new(field.clone())));
    }
    let Type::GroupType { basic_info, fields } = field else {
        return Ok(None);
    };
    let mut kept = Vec::new();
    for field in fields {
        let path = match path {
            "" => field.name().to_owned(),
            path => format!("{path}.{}", field.name()),
        };
        kept.extend(project(field, &path, columns)?);
    }
    if kept.is_empty() {
        return Ok(None);
    }
    let mut group = Type::group_type_builder(field.name()).with_fields(kept);
    if basic_info.has_repetition() {
        group = group.with_repetition(basic_info.repetition());
    }
    Ok(Some(Arc::new(group.build()?)))
}

fn object(row: &Row) -> Value {
    let fields = row.get_column_iter();
    let fields = fields.map(|(name, field)| (name.clone(), value(field)));
    Value::Object(fields.collect::<Map<String, Value>>())
}

/// Converts text and lists and structures of text. [`check`] has refused everything else.
fn value(field: &Field) -> Value {
    match field {
        Field::Str(text) => Value::String(text.clone()),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        _ => Value::Null,
    }
}
