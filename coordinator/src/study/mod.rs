//! Many jobs side by side: what a sweep asks for, and what its results say together.
//!
//! ```text
//! sweep.toml --sweep--> trials ...run as jobs... answers --statistics--> means, intervals, p values
//!                                                                            |
//!                                  published numbers --published--> tables, figure --> Markdown, HTML, JSON, SVG
//! ```
//!
//! Everything here is pure: files are read and written, and jobs are run, by whoever calls.

pub mod figure;
pub mod published;
pub mod statistics;
pub mod sweep;
pub mod tables;
