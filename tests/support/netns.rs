//! Several machines in one: network namespaces, each with an address of its own, joined by a bridge.
//!
//! ```text
//!  PREFIX-hub:  bridge --- to-c, to-w1, ...      the other end of each: eth0 in PREFIX-c, PREFIX-w1, ...
//! ```
//! Nothing of the machine's own network is touched, and all of it goes when [`Network`] is dropped.

use std::process::{Command, Stdio};

/// Hosts that reach one another and nothing else.
pub struct Network {
    prefix: String,
    hosts: Vec<String>,
}

impl Network {
    /// Joins hosts; where this machine does not let a test do that, says why.
    pub fn of(hosts: &[&str]) -> Result<Self, String> {
        let network = Self {
            prefix: format!("insula-{}", std::process::id()),
            hosts: hosts.iter().map(ToString::to_string).collect(),
        };
        network.build()?;
        // What is done to the lines later is tried where it does no harm.
        network.lose("hub", 0)?;
        network.ip(&["-n", &network.namespace("hub"), "link", "set", "lo", "up"])?;
        network.throttle("hub", "lo")?;
        Ok(network)
    }

    fn build(&self) -> Result<(), String> {
        let hub = self.namespace("hub");
        self.ip(&["netns", "add", &hub])?;
        self.ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        self.ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        for host in &self.hosts {
            let (there, line) = (self.namespace(host), line(host));
            let address = format!("{}/24", self.address(host));
            self.ip(&["netns", "add", &there])?;
            self.ip(&["-n", &hub, "link", "add", &line, "type", "veth", "peer", "name", "eth0", "netns", &there])?;
            self.ip(&["-n", &hub, "link", "set", &line, "master", "bridge", "up"])?;
            self.ip(&["-n", &there, "addr", "add", &address, "dev", "eth0"])?;
            self.ip(&["-n", &there, "link", "set", "eth0", "up"])?;
            self.ip(&["-n", &there, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// A host's address.
    pub fn address(&self, host: &str) -> String {
        let place = self.hosts.iter().position(|known| known == host).expect("a host of this network");
        format!("10.77.0.{}", place + 1)
    }

    /// The command, as run on a host.
    pub fn on(&self, host: &str, command: &Command) -> Command {
        let mut there = Command::new("ip");
        there.args(["netns", "exec", &self.namespace(host)]).arg(command.get_program()).args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            there.current_dir(folder);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => there.env(name, value),
                None => there.env_remove(name),
            };
        }
        there
    }

    /// Pulls a host's cable.
    pub fn cut(&self, host: &str) {
        self.ip(&["-n", &self.namespace("hub"), "link", "set", &line(host), "down"]).unwrap();
    }

    /// Puts it back.
    pub fn heal(&self, host: &str) {
        self.ip(&["-n", &self.namespace("hub"), "link", "set", &line(host), "up"]).unwrap();
    }

    /// Loses so many of a hundred packets that arrive at a host, at random.
    pub fn lose(&self, host: &str, percent: u32) -> Result<(), String> {
        let rule = format!("add rule inet chaos arriving iifname eth0 numgen random mod 100 < {percent} counter drop");
        self.nft(host, "add table inet chaos")?;
        self.nft(host, "add chain inet chaos arriving { type filter hook input priority 0; }")?;
        self.nft(host, &rule).map(drop)
    }

    /// How many packets a host has lost.
    pub fn lost(&self, host: &str) -> u64 {
        after(&self.nft(host, "list chain inet chaos arriving").unwrap(), "counter packets")
    }

    /// Makes what leaves a host by a device wait for a line of a megabit a second.
    pub fn throttle(&self, host: &str, device: &str) -> Result<(), String> {
        let line = ["tbf", "rate", "1mbit", "burst", "4kb", "latency", "400ms"];
        let qdisc = ["tc", "qdisc", "add", "dev", device, "root"];
        self.ip(&[&["netns", "exec", &self.namespace(host)], qdisc.as_slice(), &line].concat()).map(drop)
    }

    /// How often something had to wait for a host's line.
    pub fn waited(&self, host: &str) -> u64 {
        let asked = ["netns", "exec", &self.namespace(host), "tc", "-s", "qdisc", "show", "dev", "eth0"];
        after(&self.ip(&asked).unwrap(), "overlimits")
    }

    fn nft(&self, host: &str, what: &str) -> Result<String, String> {
        self.ip(&["netns", "exec", &self.namespace(host), "nft", what])
    }

    fn ip(&self, args: &[&str]) -> Result<String, String> {
        let said = Command::new("ip").args(args).stdin(Stdio::null()).output().map_err(|e| format!("ip: {e}"))?;
        if said.status.success() {
            return Ok(String::from_utf8_lossy(&said.stdout).into_owned());
        }
        Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&said.stderr).trim()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts.iter().map(String::as_str).chain(["hub"]) {
            let _ = self.ip(&["netns", "del", &self.namespace(host)]);
        }
    }
}

/// The hub's end of a host's cable.
fn line(host: &str) -> String {
    format!("to-{host}")
}

/// The number that stands after a word.
fn after(text: &str, word: &str) -> u64 {
    let rest = text.split_once(word).unwrap_or_else(|| panic!("no '{word}' in: {text}")).1;
    rest.split_whitespace().next().unwrap().parse().unwrap()
}
