//! `insula predict`: dialogues from a file or standard input, labels on standard output; `insula serve`: the same over
//! gRPC.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    path::Path,
};

use insula_coordinator::corpus::Layout;
use insula_proto::{
    corpus::{Dialogue, LabelSet},
    ids::Digest,
    job::Template,
};
use insula_worker::{
    base::Base,
    device::Device,
    engine::precision_of,
    peft,
    predict::{self, Card, PredictError, Predicted, Predictor},
    shell::predictor,
    tuned,
};

use super::{
    logging,
    model::resolve,
    out::{self, say},
    worker::asked_to_stop,
};
use crate::{
    args::{PredictArgs, PredictorArgs, ServeArgs},
    failure::Failure,
};

/// Longest line that is read: a thousand long utterances are a tenth of it.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Preceding utterances in a prompt where nobody says: the paper's.
const WINDOW: u32 = 12;

/// `insula predict`
///
/// # Errors
/// At the first line that is no dialogue; what was printed before stands.
pub fn run(args: &PredictArgs) -> Result<(), Failure> {
    let mut lines = Lines::open(&args.file)?;
    let mut predictor = open(&args.predictor)?;
    while let Some(line) = lines.next_line()? {
        if line.trim().is_empty() {
            continue;
        }
        let dialogue = predict::parse_line(&line, &lines.number.to_string()).map_err(|e| lines.wrong(e))?;
        let predicted = predictor.predict(&dialogue).map_err(|error| match error {
            PredictError::Prompt(error) => lines.wrong(error),
            error => Failure::Operation(error.to_string()),
        })?;
        show(&dialogue, &predicted, predictor.labels(), args.json);
    }
    Ok(())
}

/// `insula serve`: until Ctrl-C or SIGTERM.
///
/// # Errors
/// When base, adapter or address cannot be used.
pub async fn serve(args: ServeArgs, verbose: u8) -> Result<(), Failure> {
    let _log = logging::start(verbose, None);
    let failed = |e: predictor::ServeError| match e {
        predictor::ServeError::Remote(_) => Failure::Input(e.to_string()),
        _ => Failure::Operation(e.to_string()),
    };
    predictor::may_listen(args.listen, args.allow_remote).map_err(failed)?;
    let opening = tokio::task::spawn_blocking(move || open(&args.predictor));
    let predictor = opening.await.map_err(|e| Failure::operation("load the base", e))??;
    let serving = predictor::serve(predictor, args.listen, args.allow_remote).await.map_err(failed)?;
    say!("predictor at http://{}", serving.addr);
    asked_to_stop().await;
    serving.stop().await.map_err(failed)
}

/// Base, adapter, labels and window as typed, or as the adapter's insula.json has them.
fn open(args: &PredictorArgs) -> Result<Predictor, Failure> {
    let input = |e: &dyn std::fmt::Display| Failure::Input(e.to_string());
    let card = args.adapter.as_deref().map(card).transpose()?.flatten();
    let labels = labels(args, card.as_ref())?;
    let base = base(args, card.as_ref())?;
    let tokenizer = base.tokenizer().map_err(|e| input(&e))?;
    let adapter = args.adapter.as_deref().filter(|folder| !is_tuned_base(folder));
    let adapter = adapter.map(|folder| peft::read_folder(folder, &base.config)).transpose();
    let adapter = adapter.map_err(|e| input(&e))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if args.threads == 0 { cores } else { args.threads };
    let precision = precision_of(args.precision);
    let device = Device::of(args.device.device, threads).map_err(|e| input(&e))?;
    let engine = device.load(&base.config, &base, precision).map_err(|e| input(&e))?;
    if let Some(card) = card.as_ref().filter(|card| card.demonstrations > 0) {
        let k = card.demonstrations;
        eprintln!("warning: the adapter learnt on prompts with {k} demonstrations behind them; here there are none");
    }
    let template = card.as_ref().map_or(Template::InstructErc, |card| card.template);
    let window = args.window.or(card.map(|card| card.window)).unwrap_or(WINDOW);
    Predictor::new(engine, tokenizer, adapter, labels, window as usize, template).map_err(|e| input(&e))
}

/// Whether a job of all parameters left this folder: it is a base itself.
fn is_tuned_base(folder: &Path) -> bool {
    folder.join(tuned::WEIGHTS_FILE).is_file()
}

/// The adapter's card, where insula wrote one.
#[expect(clippy::disallowed_methods, reason = "reads what lies beside the adapter the person named")]
fn card(folder: &Path) -> Result<Option<Card>, Failure> {
    let path = folder.join(predict::CARD_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => Card::from_json(&bytes).map(Some).map_err(|e| Failure::Input(format!("{}: {e}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::Input(format!("{}: {error}", path.display()))),
    }
}

fn labels(args: &PredictorArgs, card: Option<&Card>) -> Result<LabelSet, Failure> {
    match (&args.corpus_layout, card) {
        _ if !args.labels.is_empty() => {
            LabelSet::new(args.labels.clone()).map_err(|e| Failure::Input(format!("--labels: {e}")))
        }
        (Some(name), _) => Layout::named(name)
            .and_then(Layout::label_set)
            .ok_or_else(|| Failure::Input(format!("--corpus-layout '{name}': expected meld, emorynlp or iemocap"))),
        (None, Some(card)) => Ok(card.labels.clone()),
        (None, None) => Err(Failure::Input(format!(
            "no labels: expected --labels, --corpus-layout, or an adapter with {}",
            predict::CARD_FILE
        ))),
    }
}

fn base(args: &PredictorArgs, card: Option<&Card>) -> Result<Base, Failure> {
    let learnt_on = card.and_then(|card| card.base.digest.as_ref());
    if let Some(folder) = args.adapter.as_deref().filter(|folder| is_tuned_base(folder)) {
        return Base::open(folder).map_err(|e| Failure::Input(e.to_string()));
    }
    let resolved = match (&args.base, card) {
        (Some(source), _) => resolve(source, None)?,
        (None, Some(card)) => resolve(&card.base.source, learnt_on.map(Digest::as_str))?,
        (None, None) => {
            let file = predict::CARD_FILE;
            return Err(Failure::Input(format!("no base: expected --base, or an adapter with {file}")));
        }
    };
    if let Some(expected) = learnt_on.filter(|expected| expected.as_str() != resolved.digest) {
        eprintln!("warning: the adapter was trained on base {expected}, this one is {}", resolved.digest);
    }
    Base::open(&resolved.path).map_err(|e| Failure::Input(e.to_string()))
}

fn show(dialogue: &Dialogue, predicted: &[Predicted], labels: &LabelSet, json: bool) {
    let mut text = String::new();
    for (utterance, said) in dialogue.utterances.iter().zip(predicted) {
        let (id, number, speaker) = (&dialogue.id, &utterance.id, &utterance.speaker_name);
        let (label, probability) = (labels.name(said.label), said.probability());
        if json {
            let probabilities: serde_json::Map<String, serde_json::Value> =
                labels.names().iter().cloned().zip(said.probabilities.iter().map(|&p| p.into())).collect();
            let line = serde_json::json!({
                "dialogue": id, "utterance": number.parse::<u64>().unwrap_or_default(), "speaker": speaker,
                "label": label, "probability": probability, "probabilities": probabilities, "text": utterance.text,
            });
            text += &format!("{line}\n");
        } else {
            let words = utterance.text.split_whitespace().collect::<Vec<_>>().join(" ");
            text += &format!("{id:<8} {number:>3}  {speaker:<12} {label:<10} {probability:.3}  {words}\n");
        }
    }
    out::print(format_args!("{text}"));
}

/// Lines of a file or of standard input, counted for messages.
struct Lines {
    name: String,
    source: Box<dyn BufRead>,
    number: usize,
}

impl Lines {
    #[expect(clippy::disallowed_methods, reason = "opens the file that the person named")]
    fn open(path: &Path) -> Result<Self, Failure> {
        let (name, source): (String, Box<dyn BufRead>) = if path == Path::new("-") {
            ("standard input".into(), Box::new(io::stdin().lock()))
        } else {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|e| Failure::Input(format!("{name}: {e}")))?;
            (name, Box::new(BufReader::new(file)))
        };
        Ok(Self { name, source, number: 0 })
    }

    /// The next line; `None` at the end.
    fn next_line(&mut self) -> Result<Option<String>, Failure> {
        let mut bytes = Vec::new();
        self.number += 1;
        let read = (&mut self.source).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes);
        read.map_err(|e| self.wrong(e))?;
        if bytes.len() as u64 == LINE_BYTES_MAX {
            return Err(self.wrong(format!("has over {LINE_BYTES_MAX} bytes: expected one dialogue")));
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        String::from_utf8(bytes).map(Some).map_err(|_| self.wrong("is not UTF-8"))
    }

    fn wrong(&self, problem: impl std::fmt::Display) -> Failure {
        Failure::Input(format!("{}: line {}: {problem}", self.name, self.number))
    }
}
