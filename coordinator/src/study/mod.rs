//! Many jobs side by side: what a sweep asks for, and what its results say together.
//!
//! ```text
//! sweep.toml --sweep--> trials  -.
//! the paper --instructerc--> plan '--jobs--> reports, predictions --outcome, statistics--> means, intervals, p values
//!                                                                                                 |
//!                       published numbers --published--> reproduction: tables, figure --> Markdown, HTML, JSON, SVG
//! ```
//!
//! Everything here is pure: files are read and written, and jobs are run, by whoever calls.

pub mod figure;
pub mod halving;
pub mod instructerc;
pub mod outcome;
pub mod published;
pub mod reproduction;
pub mod statistics;
pub mod sweep;
pub mod tables;
