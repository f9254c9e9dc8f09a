//! Jobs on GPUs, through every process that a real one takes, on a stand-in for driver, cuBLASLt and NCCL that
//! interprets the kernels (fakecuda).
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests touch the world")]

mod support;

use std::{fs, path::Path, process::Command};

use support::{
    fail,
    fleet::{Results, Started, address, log},
    insula, succeed, text, tiny_base, wait_for,
};

/// A job that interpreted kernels finish in seconds: short utterances, two updates of three slots.
fn short_job(home: &Path) {
    let base = tiny_base(home);
    let corpus = home.join("corpus");
    fs::create_dir_all(&corpus).unwrap();
    fs::write(corpus.join("labels.json"), "[\"glad\", \"sad\"]").unwrap();
    for (split, dialogues) in [("train", 6), ("dev", 1), ("test", 2)] {
        let line = |i: u32| {
            let label = ["glad", "sad"][i as usize % 2];
            let text = ["hi", "oh", "ah", "no"][i as usize % 4];
            format!(
                "{{\"id\": \"{split}-{i}\", \"utterances\": [{{\"speaker\": \"A\", \"text\": \"{text}\", \"label\": \"{label}\"}}]}}\n"
            )
        };
        fs::write(corpus.join(format!("{split}.jsonl")), (0..dialogues).map(line).collect::<String>()).unwrap();
    }
    let job = format!(
        "name = \"short\"\n[corpus]\npath = {corpus:?}\n[data]\nwindow = 0\ntemplate = \"plain\"\n[base]\nsource = {base:?}\n\
         [adapter]\nr = 4\nalpha = 8\n[train]\nepochs = 1\nbatch = 3\nlr = 5e-3\nslot_tokens = 1\ncheckpoint_updates = 1\n\
         [evaluate]\nmax_new_tokens = 3\n"
    );
    fs::write(home.join("job.toml"), job).unwrap();
}

/// The command on stand-in GPUs.
fn on_gpus(home: &Path, gpus: usize) -> Command {
    let libraries = insula_fakecuda::install(&home.join("cuda")).unwrap();
    let mut command = insula(home);
    command.env("LD_LIBRARY_PATH", libraries).env("INSULA_FAKECUDA_DEVICES", gpus.to_string());
    command
}

#[test]
fn one_and_two_gpus_leave_the_same_adapter_and_two_exchange_by_nccl() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    short_job(home);
    let run = |gpus: usize, out: &str| {
        let workers = gpus.to_string();
        let together = format!("schedule.min_workers={workers}");
        let args = ["run", "job.toml", "--device", "cuda", "--workers", &workers, "--set", &together];
        succeed(on_gpus(home, gpus).args(args).args(["--out", out, "--state", &format!("{out}-state")]));
        Results::of(&home.join(out))
    };
    let one = run(1, "one");
    assert!(run(2, "two") == one, "two GPUs left another adapter or other predictions");
    let logged = log(home, "two-state");
    assert!(logged.contains("rank 0 of 2, by NCCL"), "{logged}");
    // NCCL adds in an order of its own: nearly the same losses.
    let fast = ["run", "job.toml", "--device", "cuda", "--workers", "2", "--set", "schedule.min_workers=2", "--set"];
    succeed(on_gpus(home, 2).args(fast).args(["train.sum=fast", "--out", "fast", "--state", "fast-state"]));
    let losses = |out: &str| -> Vec<f64> {
        let report = support::json_file(&home.join(out).join("report.json"));
        report["training"]["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect()
    };
    let (exact, fast) = (losses("one"), losses("fast"));
    assert!(exact.iter().zip(&fast).all(|(a, b)| (a - b).abs() < 1e-4), "{exact:?} and {fast:?}");
    // The CPU rounds elsewhere, so its bits are others; on a machine without a driver it is what `auto` comes to.
    succeed(insula(home).args(["run", "job.toml", "--out", "cpu", "--state", "cpu-state"]));
    assert!(Results::of(&home.join("cpu")) != one);
}

#[test]
fn a_gpu_that_goes_in_an_update_is_gone_on_without() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    short_job(home);
    let job = ["--set", "train.epochs=3"];
    succeed(on_gpus(home, 1).args(["run", "job.toml", "--device", "cuda"]).args(job).args([
        "--out",
        "calm",
        "--state",
        "calm-state",
    ]));
    let mut coordinator = on_gpus(home, 2);
    let _coordinator = Started::new(coordinator.args(["coordinator", "--state", "state", "--listen", "127.0.0.1:0"]));
    let url = address(home, "state");
    let worker = |gpu: usize, name: &str| {
        let device = format!("cuda:{gpu}");
        Started::new(on_gpus(home, 2).args(["worker", "--coordinator", &url, "--device", &device, "--name", name]))
    };
    let (_first, mut second) = (worker(0, "a"), worker(1, "b"));
    let submit = ["submit", "job.toml", "--coordinator", &url, "--set", "workers=2", "--set", "schedule.min_workers=2"];
    succeed(insula(home).args(submit).args(job));
    wait_for("both to train", || log(home, "state").contains("of 2, by NCCL").then_some(()));
    second.kill();
    // What is there is enough from here on.
    let _third = worker(1, "c");
    succeed(insula(home).args(["watch", "job-1", "--coordinator", &url]));
    succeed(insula(home).args(["report", "job-1", "--coordinator", &url, "--out", "out"]));
    assert!(Results::of(&home.join("out")) == Results::of(&home.join("calm")), "another adapter or other predictions");
}

#[test]
fn what_a_device_refuses_ends_the_job_in_its_class_and_nccl_only_its_exchange() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    short_job(home);
    for (place, (fault, class, code)) in [
        // Once is nothing: what lies free is given back, and asked for again. The task's second try has room.
        ("cuMemAllocAsync:20:2;cuMemAllocAsync:21:2", "out of memory", 0),
        // A process whose device has failed ends, and the next one meets the same fault.
        ("cuLaunchKernel:9:719", "device", 3),
        ("cuMemcpyDtoHAsync_v2:2:719", "device", 3),
        ("cublasLtMatmul:7:13", "device", 3),
    ]
    .into_iter()
    .enumerate()
    {
        let state = format!("state-{place}");
        let args = ["run", "job.toml", "--device", "cuda", "--workers", "1", "--state", &state];
        let output = on_gpus(home, 1).env("INSULA_FAKECUDA_FAIL", fault).args(args).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{fault}: {said}");
        assert!(said.contains(&format!("{class}: worker local-0: ")) && !said.contains("panicked"), "{fault}: {said}");
    }
    let run = |state: &str, fault: &str| {
        let args = ["run", "job.toml", "--device", "cuda", "--workers", "2", "--set", "schedule.min_workers=2"];
        succeed(
            on_gpus(home, 2).env("INSULA_FAKECUDA_FAIL", fault).args(args).args(["--out", state, "--state", state]),
        );
        Results::of(&home.join(state))
    };
    let calm = run("calm", "");
    assert!(run("spoilt", "ncclGroupEnd:2:2") == calm, "another adapter or other predictions");
    assert!(log(home, "spoilt").contains("between the GPUs"), "{}", log(home, "spoilt"));
}

#[test]
fn too_small_a_gpu_is_told_before_anything_is_computed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    short_job(home);
    let args = ["run", "job.toml", "--device", "cuda", "--workers", "1"];
    let said = fail(on_gpus(home, 1).env("INSULA_FAKECUDA_MEMORY", (96 << 20).to_string()).args(args), 3);
    assert!(said.contains("out of memory") && said.contains("lower train.slot_tokens"), "{said}");
}

#[test]
fn without_a_driver_cuda_is_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    let said = fail(insula(home.path()).args(["worker", "--coordinator", "http://127.0.0.1:1", "--device", "cuda"]), 2);
    assert!(said.contains("cuda:0: the driver's library (libcuda.so.1) was not found on this machine"), "{said}");
    let said = fail(insula(home.path()).args(["worker", "--device", "gpu"]), 2);
    assert!(said.contains("device \"gpu\": expected auto, cpu, cuda or cuda:N"), "{said}");
}

#[test]
fn the_doctor_checks_every_operation_of_every_gpu() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let said = succeed(on_gpus(home, 2).args(["doctor", "--gpu", "--quick", "--state", "state"]));
    for expected in ["cuda:0: ", "cuda:1: ", "results as the CPU's", "joins all GPUs", "attention_back: dk", "GB/s"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(!said.contains("DIFFERS"), "{said}");
}
