//! cuBLASLt entry points.
#![expect(unsafe_code, reason = "an exported name is unsafe by its nature; there is no unsafe block here")]

use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::call::entry_points;
use super::pointers::{Host, In, Out};
use crate::codes::LtCode;
use crate::context::{Owned, current, stream};
use crate::journal;
use crate::lt::{Call, Description, Layout, Plan};
use crate::stream::Work;
use crate::table::Table;

static HANDLES: Table<()> = Table::new();
static DESCRIPTIONS: Table<Mutex<Description>> = Table::new();
static LAYOUTS: Table<Mutex<Layout>> = Table::new();
static PREFERENCES: Table<()> = Table::new();

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
pub struct HeuristicResult {
    algorithm: [u64; 8],
    workspace_bytes: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// The version that the library says it is: 12.9.1.
const LT_VERSION: usize = 120_901;

#[expect(unsafe_code, reason = "an entry point of a C library")]
#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    LT_VERSION
}

entry_points! {
fn cublasLtCreate(handle: Out<usize>) -> LtCode {
    current().map_err(|_| LtCode::NOT_INITIALIZED)?;
    stored(handle.put(HANDLES.insert(Arc::new(()))))
}
fn cublasLtDestroy(handle: usize) -> LtCode {
    HANDLES.remove(handle).map(drop).ok_or(LtCode::NOT_INITIALIZED)
}
fn cublasLtMatmulDescCreate(handle: Out<usize>, compute: c_int, scale: c_int) -> LtCode {
    stored(handle.put(DESCRIPTIONS.insert(Arc::new(Mutex::new(Description::new(compute, scale))))))
}
fn cublasLtMatmulDescDestroy(handle: usize) -> LtCode {
    DESCRIPTIONS.remove(handle).map(drop).ok_or(LtCode::INVALID_VALUE)
}
fn cublasLtMatmulDescSetAttribute(handle: usize, attribute: c_int, value: Host, bytes: usize) -> LtCode {
    let description = DESCRIPTIONS.get(handle).ok_or(LtCode::INVALID_VALUE)?;
    let value = attribute_bytes(value, bytes)?;
    lock(&description).set(attribute, &value)
}
fn cublasLtMatrixLayoutCreate(handle: Out<usize>, element: c_int, rows: u64, cols: u64, ld: i64) -> LtCode {
    stored(handle.put(LAYOUTS.insert(Arc::new(Mutex::new(Layout::new(element, rows, cols, ld))))))
}
fn cublasLtMatrixLayoutDestroy(handle: usize) -> LtCode {
    LAYOUTS.remove(handle).map(drop).ok_or(LtCode::INVALID_VALUE)
}
fn cublasLtMatrixLayoutSetAttribute(handle: usize, attribute: c_int, value: Host, bytes: usize) -> LtCode {
    let layout = LAYOUTS.get(handle).ok_or(LtCode::INVALID_VALUE)?;
    let value = attribute_bytes(value, bytes)?;
    lock(&layout).set(attribute, &value)
}
fn cublasLtMatmulPreferenceCreate(handle: Out<usize>) -> LtCode {
    stored(handle.put(PREFERENCES.insert(Arc::new(()))))
}
fn cublasLtMatmulPreferenceDestroy(handle: usize) -> LtCode {
    PREFERENCES.remove(handle).map(drop).ok_or(LtCode::INVALID_VALUE)
}
fn cublasLtMatmulPreferenceSetAttribute(handle: usize, _attribute: c_int, value: Host, bytes: usize) -> LtCode {
    // There is one algorithm, which needs no workspace: preferences change nothing.
    attribute_bytes(value, bytes)?;
    PREFERENCES.get(handle).map(drop).ok_or(LtCode::INVALID_VALUE)
}
fn cublasLtMatmulAlgoGetHeuristic(
    handle: usize, how: usize, a: usize, b: usize, c: usize, d: usize, preference: usize,
    asked: c_int, results: Out<HeuristicResult>, found: Out<c_int>,
) -> LtCode {
    HANDLES.get(handle).ok_or(LtCode::NOT_INITIALIZED)?;
    PREFERENCES.get(preference).ok_or(LtCode::INVALID_VALUE)?;
    stored(found.put(0))?;
    if asked < 1 { return Err(LtCode::INVALID_VALUE) }
    plan(how, [a, b, c, d])?;
    let result = HeuristicResult {
        algorithm: [0; 8], workspace_bytes: 0, state: 0, waves: 1.0, reserved: [0; 4],
    };
    stored(results.put(result))?;
    stored(found.put(1))
}
fn cublasLtMatmul(
    handle: usize, how: usize,
    alpha: In<f32>, a: u64, a_layout: usize, b: u64, b_layout: usize,
    beta: In<f32>, c: u64, c_layout: usize, d: u64, d_layout: usize,
    _algorithm: In<[u64; 8]>, workspace: u64, workspace_bytes: usize, on: usize,
) -> LtCode {
    HANDLES.get(handle).ok_or(LtCode::NOT_INITIALIZED)?;
    let plan = plan(how, [a_layout, b_layout, c_layout, d_layout])?;
    let alpha = alpha.get().ok_or(LtCode::INVALID_VALUE)?;
    let beta = beta.get().ok_or(LtCode::INVALID_VALUE)?;
    let Owned { value: stream, device } = stream(on)?;
    if workspace_bytes > 0 {
        device.book.find(workspace, workspace_bytes as u64).map_err(|_| LtCode::INVALID_VALUE)?;
    }
    journal::detail(|| plan.summary());
    let call = Call { a, b, c, d, alpha, beta };
    Ok(stream.submit(Work::new(move || plan.run(&call, &device.book)))?)
}
}

fn stored(stored: bool) -> Result<(), LtCode> {
    if stored { Ok(()) } else { Err(LtCode::INVALID_VALUE) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of an attribute: no attribute is longer than a pointer.
fn attribute_bytes(value: Host, bytes: usize) -> Result<Vec<u8>, LtCode> {
    if value.is_null() || bytes > 8 {
        return Err(LtCode::INVALID_VALUE);
    }
    let mut copy = vec![0; bytes];
    value.read(&mut copy);
    Ok(copy)
}

fn plan(how: usize, layouts: [usize; 4]) -> Result<Plan, LtCode> {
    let how = *lock(&*DESCRIPTIONS.get(how).ok_or(LtCode::INVALID_VALUE)?);
    let [a, b, c, d] = layouts;
    Plan::new(&how, &layout(a)?, &layout(b)?, &layout(c)?, &layout(d)?)
}

fn layout(handle: usize) -> Result<Layout, LtCode> {
    Ok(*lock(&*LAYOUTS.get(handle).ok_or(LtCode::INVALID_VALUE)?))
}
