//! A shard's bytes: whole dialogues as one Parquet file, one row per utterance.
//!
//! Coordinator and worker must agree on it: the coordinator encodes, the worker decodes. The same dialogues always give
//! the same bytes (fixed writer, fixed compression, nothing of the clock or the machine inside), so a shard's digest is
//! the digest of what it says.
//!
//! ```text
//! dialogue_id  utterance_id  speaker  speaker_name  text    gold
//! string       string        u32      string        string  u16     rows of one dialogue stand together, in order
//! ```

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, StringArray, UInt16Array, UInt32Array};
use arrow_schema::{Field, Schema};
use bytes::Bytes;
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder, arrow_writer::ArrowWriterOptions},
    basic::{Compression, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties, WriterVersion},
};

use crate::corpus::{Dialogue, Label, Utterance};

/// Why bytes are not a shard.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// Not Parquet, or a damaged one.
    #[error("the shard is no readable parquet file: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// Parquet, but its rows do not decode.
    #[error("the shard's rows do not decode: {0}")]
    Rows(#[from] arrow_schema::ArrowError),
    /// A column that is missing, of another type, or has holes.
    #[error("the shard's column '{name}' is missing or is not {expected} without nulls")]
    Column {
        /// Its name.
        name: &'static str,
        /// Its type.
        expected: &'static str,
    },
}

/// The Parquet file that holds these dialogues.
///
/// # Panics
/// Never on dialogues with utterances; one without any leaves no row and would be lost, so it is refused by assertion.
pub fn encode(dialogues: &[Dialogue]) -> Vec<u8> {
    assert!(dialogues.iter().all(|d| !d.utterances.is_empty()), "a dialogue without utterances cannot be sharded");
    let batch = batch_of(dialogues);
    let options = ArrowWriterOptions::new().with_properties(properties()).with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), batch.schema(), options)
        .expect("the shard's schema is one parquet can hold");
    writer.write(&batch).expect("writing to memory does not fail");
    writer.into_inner().expect("writing to memory does not fail")
}

/// The dialogues in a shard's bytes.
///
/// # Errors
/// When the bytes are not what [`encode`] writes.
pub fn decode(bytes: &[u8]) -> Result<Vec<Dialogue>, ShardError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::copy_from_slice(bytes))?.build()?;
    let mut dialogues = Vec::new();
    for batch in reader {
        add_rows(&batch?, &mut dialogues)?;
    }
    Ok(dialogues)
}

/// Every choice that shows in the bytes, so that none is left to a default that may change.
fn properties() -> WriterProperties {
    // Level 3 is zstd's own default: dialogue text shrinks to about a third, higher levels gain 2%.
    let level = ZstdLevel::try_new(3).expect("zstd has a level 3");
    WriterProperties::builder()
        .set_created_by("insula shard 1".into())
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(level))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_dictionary_enabled(true)
        .build()
}

fn batch_of(dialogues: &[Dialogue]) -> RecordBatch {
    let rows = || dialogues.iter().flat_map(|d| d.utterances.iter().map(move |u| (d, u)));
    let text = |pick: fn(&Dialogue, &Utterance) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows().map(|(d, u)| pick(d, u))))
    };
    let columns = [
        ("dialogue_id", text(|d, _| d.id.clone())),
        ("utterance_id", text(|_, u| u.id.clone())),
        ("speaker", Arc::new(UInt32Array::from_iter_values(rows().map(|(_, u)| u.speaker))) as ArrayRef),
        ("speaker_name", text(|_, u| u.speaker_name.clone())),
        ("text", text(|_, u| u.text.clone())),
        ("gold", Arc::new(UInt16Array::from_iter_values(rows().map(|(_, u)| u.gold.0))) as ArrayRef),
    ];
    let field = |(name, column): &(&str, ArrayRef)| Field::new(*name, column.data_type().clone(), false);
    let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(schema, columns).expect("all columns have one row per utterance")
}

fn add_rows(batch: &RecordBatch, dialogues: &mut Vec<Dialogue>) -> Result<(), ShardError> {
    let dialogue_ids = column::<StringArray>(batch, "dialogue_id", "text")?;
    let utterance_ids = column::<StringArray>(batch, "utterance_id", "text")?;
    let speakers = column::<UInt32Array>(batch, "speaker", "a 32-bit number")?;
    let speaker_names = column::<StringArray>(batch, "speaker_name", "text")?;
    let texts = column::<StringArray>(batch, "text", "text")?;
    let golds = column::<UInt16Array>(batch, "gold", "a 16-bit number")?;
    for row in 0..batch.num_rows() {
        let id = dialogue_ids.value(row);
        if dialogues.last().is_none_or(|d| d.id != id) {
            dialogues.push(Dialogue { id: id.to_owned(), utterances: Vec::new() });
        }
        let utterance = Utterance {
            id: utterance_ids.value(row).to_owned(),
            speaker: speakers.value(row),
            speaker_name: speaker_names.value(row).to_owned(),
            text: texts.value(row).to_owned(),
            gold: Label(golds.value(row)),
        };
        dialogues.last_mut().expect("a dialogue was just there").utterances.push(utterance);
    }
    Ok(())
}

fn column<'a, A: Array + 'static>(
    batch: &'a RecordBatch,
    name: &'static str,
    expected: &'static str,
) -> Result<&'a A, ShardError> {
    let column = batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<A>());
    column.filter(|c| c.null_count() == 0).ok_or(ShardError::Column { name, expected })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::Digest;

    fn dialogue(id: String, turns: Vec<(u32, String, u16)>) -> Dialogue {
        let turn = |(place, (speaker, text, gold)): (usize, (u32, String, u16))| Utterance {
            id: place.to_string(),
            speaker,
            speaker_name: format!("speaker {speaker}"),
            text,
            gold: Label(gold),
        };
        Dialogue { id, utterances: turns.into_iter().enumerate().map(turn).collect() }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(
            dialogues in prop::collection::vec(prop::collection::vec((0u32..9, ".{0,40}", 0u16..7), 1..9), 1..9)
        ) {
            let dialogues: Vec<_> =
                dialogues.into_iter().enumerate().map(|(n, turns)| dialogue(format!("train/{n}"), turns)).collect();
            prop_assert_eq!(decode(&encode(&dialogues)).unwrap(), dialogues);
        }
    }

    #[test]
    fn the_same_dialogues_give_the_same_digest_always() {
        let dialogues =
            [dialogue("test/s1_e1_c1".into(), vec![(0, "Hi.".into(), 3), (1, "\u{201c}Oh\u{201d}, no".into(), 0)])];
        assert_eq!(encode(&dialogues), encode(&dialogues));
        // Written once by this code: a change of these bytes is a change of every corpus's digest.
        assert_eq!(
            Digest::of(&encode(&dialogues)).hex(),
            "7e12080b6e93393157537fb769b8cf39f985f3e6b4be328ed7785480fbc7c868"
        );
    }

    #[test]
    fn bytes_that_are_no_shard_are_refused() {
        assert!(matches!(decode(b"PAR1 but not really PAR1"), Err(ShardError::Parquet(_))));
        let whole = encode(&[dialogue("train/0".into(), vec![(0, "Hi.".into(), 0)])]);
        assert!(decode(&whole[..whole.len() - 9]).is_err());
    }
}
