//! Stages, demonstrations, arms and corpora that cannot work are refused with the field named, before anything starts.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{fs, path::Path};

use support::{corpora::write, fail, insula, succeed, tiny_job};

/// A fresh home with the tiny job.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    tiny_job(home.path());
    home
}

/// Runs the tiny job with text behind its file and more settings; expects code 2, and every one of `parts` in what it
/// says.
fn refused(home: &Path, text: &str, more: &[&str], parts: &[&str]) {
    let job = fs::read_to_string(home.join("job.toml")).unwrap();
    fs::write(home.join("wrong.toml"), format!("{job}\n{text}")).unwrap();
    let said = fail(insula(home).args(["run", "wrong.toml"]).args(more), 2);
    for part in parts {
        assert!(said.contains(part), "expected '{part}' in: {said}");
    }
    assert!(!home.join(".insula").exists(), "nothing is begun: {said}");
}

const SPEAKER: &str = "[[stages]]\nobjectives = [\"speaker\"]\n";
const MAIN: &str = "[[stages]]\nobjectives = [\"main\"]\n";

#[test]
fn stages_that_cannot_work_are_named() {
    let home = home();
    let home = home.path();
    refused(
        home,
        &format!("{SPEAKER}epoch = 2\n{MAIN}"),
        &[],
        &["stages[0]", "unknown field `epoch`", "`epochs`", "wrong.toml"],
    );
    refused(home, &format!("{SPEAKER}{}", MAIN.replace("main", "mian")), &[], &["stages[1]", "`mian`", "`speaker`"]);
    refused(home, "[[stages]]\nepochs = 2\n", &[], &["stages[0]", "objectives"]);
    refused(home, &format!("{MAIN}epochs = \"two\"\n"), &[], &["stages[0]", "epochs", "two"]);
    refused(home, SPEAKER, &[], &["evaluate.arms", "the last stage does not learn main", "expected no arms"]);
    refused(home, &format!("{MAIN}impact_weight = 0.1\n"), &[], &["stages.0.impact_weight", "main and impact"]);
    refused(home, &format!("{SPEAKER}{MAIN}epochs = 0\nlr = -1.0\n"), &[], &["stages.1.epochs", "stages.1.lr"]);
    let both = "[[stages]]\nobjectives = [\"main\", \"impact\"]\nimpact_weight = -0.1\n";
    refused(home, both, &[], &["stages.0.impact_weight", "-0.1: expected 0 or more"]);
}

#[test]
fn the_plain_template_has_neither_speakers_nor_demonstrations() {
    let home = home();
    let home = home.path();
    let plain = ["--set", "data.template=plain"];
    let stages = format!("{SPEAKER}{MAIN}");
    refused(home, &stages, &plain, &["stages.0.objectives", "'speaker'", "main alone with data.template = \"plain\""]);
    let demonstrations = [&plain[..], &["--set", "retrieval.k=1", "--set", "retrieval.encoder=base"]].concat();
    refused(home, "", &demonstrations, &["retrieval.k", "expected 0 with data.template = \"plain\""]);
    refused(home, "", &["--set", "data.template=bare"], &["data.template", "`bare`", "`plain`"]);
}

#[test]
fn arms_of_demonstrations_need_demonstrations() {
    let home = home();
    let home = home.path();
    refused(
        home,
        "",
        &["--set", "evaluate.arms=[\"few-shot\"]"],
        &["evaluate.arms", "few-shot", "retrieval.k above 0"],
    );
    let shuffled = ["--set", "evaluate.arms=[\"trained\", \"shuffled-demonstrations\"]"];
    refused(home, "", &shuffled, &["evaluate.arms", "shuffled-demonstrations", "retrieval.k above 0"]);
    let untrained = ["--set", "evaluate.arms=[\"few-shot\", \"shuffled-demonstrations\"]", "--set", "retrieval.k=1"];
    refused(home, "", &untrained, &["evaluate.arms", "beside trained"]);
    refused(
        home,
        "",
        &["--set", "evaluate.arms=[\"shuffled\"]"],
        &["evaluate.arms", "`shuffled`", "`shuffled-demonstrations`"],
    );
}

#[test]
fn corpora_that_cannot_be_told_are_named() {
    let home = home();
    let home = home.path();
    refused(home, "[corpora.a]\npath = \"corpus\"\n", &[], &["corpus", "beside corpora"]);
    let alone = "name = \"mix\"\n[base]\nsource = \"base\"\n";
    let of = |corpora: &str, parts: &[&str]| {
        fs::write(home.join("mix.toml"), format!("{alone}{corpora}")).unwrap();
        let said = fail(insula(home).args(["run", "mix.toml"]), 2);
        for part in parts {
            assert!(said.contains(part), "expected '{part}' in: {said}");
        }
    };
    of("[corpora.a]\npth = \"corpus\"\n", &["corpora.a", "pth", "path"]);
    of(
        "[corpora.a]\npath = \"corpus\"\n[corpora.b]\nlayout = \"medl\"\n",
        &["corpora.b.path", "corpora.b.layout", "medl"],
    );
    of("[corpora.a]\npath = \"corpus\"\n[corpora.b]\npath = \"nowhere\"\n", &["nowhere"]);
    of("[corpora.a]\npath = \"corpus\"\n[data]\nmix = \"ratios\"\n", &["data.mix", "`ratios`", "`ratio`"]);
}

/// What Python would run on opening these: each writes a file beside the corpus, as a stranger's pickle may.
#[test]
fn a_pickle_with_code_in_it_is_refused_unrun() {
    let home = home();
    let home = home.path();
    let touched = home.join("touched");
    let command = format!("touch {}", touched.display());
    let (eval, length) = {
        let code = format!("__import__('os').system({command:?})");
        let length = u8::try_from(code.len()).unwrap();
        (code, length)
    };
    let pickles = [
        // os.system by protocol 0's GLOBAL, eval by protocol 4's STACK_GLOBAL, subprocess.Popen by INST.
        (format!("cos\nsystem\n(S'{command}'\ntR.").into_bytes(), "os.system"),
        (
            [b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c", &[length][..], eval.as_bytes(), b"\x85R."].concat(),
            "builtins.eval",
        ),
        (format!("(S'{command}'\nisubprocess\nPopen\n.").into_bytes(), "subprocess.Popen"),
    ];
    write(&home.join("pickles/.keep"), "");
    let path = home.join("pickles/meld.pkl");
    for (bytes, names) in pickles {
        fs::write(&path, bytes).unwrap();
        let setting = format!("corpus.path={:?}", path.display().to_string());
        let said = fail(insula(home).args(["run", "job.toml", "--set", &setting]), 2);
        for part in ["meld.pkl", "byte ", &format!("would call {names}")] {
            assert!(said.contains(part), "expected '{part}' in: {said}");
        }
        fail(insula(home).args(["corpus", "describe"]).arg(&path), 2);
        fail(insula(home).args(["corpus", "render"]).arg(home.join("pickles")), 2);
        assert!(!touched.exists(), "the pickle was run");
    }
    assert!(succeed(insula(home).arg("status")).contains("no jobs"));
}
