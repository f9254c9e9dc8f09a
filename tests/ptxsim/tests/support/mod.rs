//! Small PTX texts around a body, and what comes out of running them.
#![allow(dead_code, reason = "each test crate uses its part")]

use insula_ptxsim::{Arena, Checks, Copies, Counts, Fault, Launch, Module, Params, run};

/// A module with one kernel `k(in, out)`: %rd1 and %rd2 are the two pointers, %r1 the thread's number.
pub fn module(outer: &str, body: &str) -> String {
    format!(
        ".version 7.0\n.target sm_80\n.address_size 64\n{outer}\n\
         .visible .entry k(\n.param .u64 k_in,\n.param .u64 k_out\n)\n{{\n\
         .reg .pred %p<20>;\n.reg .b16 %rs<20>;\n.reg .b32 %r<60>;\n.reg .f32 %f<40>;\n.reg .b64 %rd<40>;\n.reg .f64 %fd<20>;\n\
         ld.param.u64 %rd1, [k_in];\nld.param.u64 %rd2, [k_out];\nmov.u32 %r1, %tid.x;\n{body}\nret;\n}}\n"
    )
}

pub struct Case<'a> {
    pub outer: &'a str,
    pub body: &'a str,
    pub grid: u32,
    pub block: u32,
    pub dynamic_shared: u32,
    pub checks: Checks,
}

impl<'a> Case<'a> {
    /// One block of 32 threads, all checks.
    pub fn new(body: &'a str) -> Case<'a> {
        Case { outer: "", body, grid: 1, block: 32, dynamic_shared: 0, checks: Checks::default() }
    }

    pub fn shared(self) -> Case<'a> {
        Case { outer: ".extern .shared .align 16 .b8 dyn[];", dynamic_shared: 4096, ..self }
    }

    pub fn outer(self, outer: &'a str) -> Case<'a> {
        Case { outer, ..self }
    }

    pub fn block(self, block: u32) -> Case<'a> {
        Case { block, ..self }
    }

    pub fn grid(self, grid: u32) -> Case<'a> {
        Case { grid, ..self }
    }

    pub fn eager(self) -> Case<'a> {
        Case { checks: Checks { copies: Copies::Eager, ..self.checks }, ..self }
    }

    pub fn unchecked(self) -> Case<'a> {
        Case { checks: Checks { races: false, uninitialised: false, ..self.checks }, ..self }
    }

    /// Runs over the input and gives the first `count` words of the output, which begins as zeros.
    pub fn run(&self, input: &[u32], count: usize) -> Result<(Vec<u32>, Counts), Fault> {
        let text = module(self.outer, self.body);
        let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        let arena = Arena::new();
        let (input, output) = (arena.upload(input), arena.upload(&vec![0_u32; count]));
        let params = Params::new().push(input).push(output);
        let launch = Launch {
            kernel: module.kernel("k").expect("the module has it"),
            grid: [self.grid, 1, 1],
            block: [self.block, 1, 1],
            dynamic_shared: self.dynamic_shared,
            params: params.bytes(),
            checks: self.checks,
        };
        let counts = run(&launch, &arena)?;
        Ok((arena.download(output, count).expect("it is live"), counts))
    }

    pub fn output(&self, input: &[u32], count: usize) -> Vec<u32> {
        self.run(input, count).unwrap_or_else(|fault| panic!("{fault}")).0
    }

    pub fn fault(&self, input: &[u32], count: usize) -> Fault {
        match self.run(input, count) {
            Ok(_) => panic!("no fault in\n{}", self.body),
            Err(fault) => fault,
        }
    }
}

/// Runs one instruction in one thread. The inputs are in %rd11-13, %r11-13 (low half), %f11-13 and %fd11-13 (same bits),
/// %rs11-13 (low 16 bits), and %p11-13 (not zero). The result is register number 9 of the file that `result` names.
pub fn evaluate(result: &str, instruction: &str, inputs: [u64; 3]) -> u64 {
    let mut body = String::new();
    for at in 0..3 {
        let n = 11 + at;
        body += &format!(
            "ld.global.u64 %rd{n}, [%rd1+{}];\ncvt.u32.u64 %r{n}, %rd{n};\nmov.b32 %f{n}, %r{n};\nmov.b64 %fd{n}, %rd{n};\n\
             cvt.u16.u64 %rs{n}, %rd{n};\nsetp.ne.u64 %p{n}, %rd{n}, 0;\n",
            at * 8
        );
    }
    body += instruction;
    body += match result {
        "p" => "\nselp.u32 %r9, 1, 0, %p9;\ncvt.u64.u32 %rd9, %r9;",
        "rs" => "\ncvt.u64.u16 %rd9, %rs9;",
        "r" => "\ncvt.u64.u32 %rd9, %r9;",
        "f" => "\nmov.b32 %r9, %f9;\ncvt.u64.u32 %rd9, %r9;",
        "fd" => "\nmov.b64 %rd9, %fd9;",
        "rd" => "",
        other => panic!("no register file {other}"),
    };
    body += "\nst.global.u64 [%rd2], %rd9;";
    let words: Vec<u32> = inputs.iter().flat_map(|x| [*x as u32, (*x >> 32) as u32]).collect();
    let out = Case::new(&body).block(1).output(&words, 2);
    u64::from(out[1]) << 32 | u64::from(out[0])
}
