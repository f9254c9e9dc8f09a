//! Hosts of their own, joined by lines that lose packets, are slow, and are cut: a gang of three leaves the undisturbed
//! run's adapter.
//!
//! Linux only: network namespaces (root), `ip`, `tc` and `nft`. Where they are not to be had it says so and does nothing.
#![expect(clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use support::{
    fleet::{Results, Started, log},
    insula, json_file,
    netns::Network,
    succeed, tiny_job, wait_for,
};

const WORKERS: [&str; 3] = ["w1", "w2", "w3"];
/// Enough updates that there is a middle to be cut off in.
const MORE: [&str; 4] = ["--set", "train.epochs=12", "--set", "checkpoint_updates=3"];
const TOGETHER: [&str; 2] = ["--set", "workers=3"];

/// Who wrote the first line of a job's log that holds all of `words`.
fn who(log: &str, words: &[&str]) -> Option<String> {
    let found = log.lines().find(|line| words.iter().all(|word| line.contains(word)))?;
    Some(found.split_once(": ")?.0.to_owned())
}

#[test]
fn a_gang_of_three_hosts_on_bad_lines_trains_the_undisturbed_adapter() {
    let network = match Network::of(&["c", "w1", "w2", "w3"]) {
        Ok(network) => network,
        Err(why) => return println!("skipped: no network of namespaces here: {why}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    tiny_job(home);
    let calm = Results::undisturbed(home, &MORE);
    let coordinator_at = network.address("c");
    succeed(insula(home).args(["coordinator", "init-tls", "keys", "--host", &coordinator_at]));
    let serve = ["coordinator", "--config", "keys/coordinator.toml", "--state", "state"];
    let _coordinator = Started::new(&mut network.on("c", insula(home).args(serve)));
    let asked = |args: &[&str]| network.on("c", insula(home).args(args).args(["--state", "state"]));
    wait_for("the coordinator", || {
        let answered = || asked(&["status"]).output().unwrap().status.success();
        (home.join("state/address").is_file() && answered()).then_some(())
    });
    succeed(&mut asked(&[&["submit", "job.toml"], MORE.as_slice(), &TOGETHER].concat()));

    for host in WORKERS {
        network.lose(host, 20).unwrap();
        network.throttle(host, "eth0").unwrap();
    }
    let _workers = WORKERS.map(|host| {
        let mut worker = insula(home);
        worker.args(["worker", "--config", "keys/join/worker.toml", "--name", host, "--threads", "1"]);
        Started::new(&mut network.on(host, worker.env("INSULA_CACHE", home.join(format!("cache-{host}")))))
    });
    let trainer = wait_for("updates of a gang", || {
        // Whoever leads says so of each update, and how much of it went into the exchange.
        let log = log(home, "state");
        who(&log, &["update 5/"]).filter(|_| who(&log, &["exchange "]).is_some())
    });
    println!("{trainer} leads, and is cut off");
    network.cut(&trainer);
    let heir = wait_for("another worker to go on", || {
        let log = log(home, "state");
        let mut led = log.lines().filter(|line| line.contains(", gradient norm ") && !line.starts_with(&trainer));
        led.next_back().and_then(|line| Some(line.split_once(": ")?.0.to_owned()))
    });
    println!("{heir} goes on, and {trainer} is back");
    network.heal(&trainer);
    succeed(&mut asked(&["watch", "job-1"]));
    succeed(&mut asked(&["report", "job-1", "--out", "out"]));
    assert!(Results::of(&home.join("out")) == calm, "the adapter or the predictions differ");
    let report = json_file(&home.join("out/report.json"));
    assert!(report["arms"].as_array().is_some_and(|arms| !arms.is_empty()), "{report}");

    let audit = succeed(&mut asked(&["audit", "job-1"]));
    println!("{audit}");
    assert!(audit.contains("every one exactly once") && audit.matches(", ").count() > 2, "{audit}");

    // The lines were bad ones: each lost packets, and who trained had more to send than its line took.
    let waited = WORKERS.map(|host| {
        println!("{host} lost {} packets, waited {} times for its line", network.lost(host), network.waited(host));
        assert!(network.lost(host) > 0, "{host} lost nothing");
        network.waited(host)
    });
    assert!(waited.iter().sum::<u64>() > 0, "nobody waited for a line");
    // Who was cut off is one of the fleet again.
    wait_for("the worker that was cut off", || {
        let status: serde_json::Value = serde_json::from_str(&succeed(&mut asked(&["status", "--json"]))).unwrap();
        let alive = |worker: &serde_json::Value| worker["name"] == trainer.as_str() && worker["alive"] == true;
        status["workers"].as_array().unwrap().iter().any(alive).then_some(())
    });
}
