//! Matrix products by cuBLASLt: bfloat16 operands, float32 accumulation.
//!
//! cuBLASLt picks an algorithm by the shapes, kinds and alignments of the operands; the choice is kept, so that a shape
//! is asked about once and always computed alike.
#![expect(unsafe_code, reason = "cuBLASLt's interface is C")]

use std::{
    collections::HashMap,
    ffi::c_void,
    mem::size_of_val,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::cublaslt::{
    result::{self, CublasError},
    sys::{
        self, cublasComputeType_t, cublasLtMatmulDescAttributes_t as DescAttribute,
        cublasLtMatmulPreferenceAttributes_t as Preference, cudaDataType_t as DataType,
    },
};

use super::{
    device::{Device, has_library},
    memory::{Block, Element, Pool},
};
use crate::error::KernelError;

/// What NVIDIA recommends for Hopper, and more than enough before it, bytes.
const WORKSPACE: usize = 32 << 20;
/// The most alignment that cuBLASLt asks about, bytes.
const MOST_ALIGNMENT: u64 = 256;

/// A bfloat16 operand as it lies in memory, row-major.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand {
    pub address: u64,
    /// Whether what lies there is the transpose of what is multiplied.
    pub transposed: bool,
}

impl Operand {
    pub(crate) fn plain(address: u64) -> Self {
        Self { address, transposed: false }
    }

    pub(crate) fn transposed(address: u64) -> Self {
        Self { address, transposed: true }
    }
}

/// `c = alpha * a b + beta * c`; `a: [m, k]`, `b: [k, n]`, `c: [m, n]`, row-major.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub a: Operand,
    pub b: Operand,
    pub c: u64,
    pub element: Element,
    pub shape: [usize; 3],
    pub alpha: f32,
    pub beta: f32,
}

/// What an algorithm is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    shape: [usize; 3],
    transposed: [bool; 2],
    element: Element,
    alignments: [u64; 3],
}

impl Form {
    fn of(product: &Product) -> Self {
        let Product { a, b, c, element, shape, .. } = *product;
        let alignment = |address: u64| 1 << address.trailing_zeros().min(MOST_ALIGNMENT.trailing_zeros());
        Self {
            shape,
            transposed: [a.transposed, b.transposed],
            element,
            alignments: [a.address, b.address, c].map(alignment),
        }
    }
}

/// The library's descriptions of a form, and the algorithm for it.
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: descriptions are plain memory of the library's that is only read once it is made.
unsafe impl Send for Plan {}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `Making`, used by nobody any more.
        unsafe {
            let _ = result::destroy_matmul_desc(self.desc);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

struct Handle(sys::cublasLtHandle_t);

// SAFETY: cuBLASLt's handle may be used by any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `create_handle`, used by nobody any more.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// cuBLASLt on one device.
pub(crate) struct Blas {
    device: Arc<Device>,
    handle: Handle,
    workspace: Block,
    plans: Mutex<HashMap<Form, Plan>>,
}

impl std::fmt::Debug for Blas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuBLASLt on {:?}", self.device)
    }
}

impl Blas {
    /// # Errors
    /// When the library is missing or does not start, or there is no room for its workspace.
    pub(crate) fn new(device: Arc<Device>, pool: &Arc<Pool>) -> Result<Self, KernelError> {
        if !has_library(sys::is_culib_present) {
            let reason = "cuBLASLt's library (libcublasLt.so.12) was not found on this machine".into();
            return Err(KernelError::Absent { device: format!("{device:?}"), reason });
        }
        device.bind()?;
        let handle = Handle(result::create_handle().map_err(|error| refused("cublasLtCreate", error))?);
        Ok(Self { workspace: pool.kept(WORKSPACE)?, device, handle, plans: Mutex::default() })
    }

    /// The library's version, 10000 times the major, 100 times the minor, and the patch.
    #[expect(clippy::unused_self, reason = "whoever has one has the library")]
    pub(crate) fn version(&self) -> usize {
        // SAFETY: takes and keeps nothing.
        unsafe { sys::cublasLtGetVersion() }
    }

    /// Issues a product.
    pub(crate) fn multiply(&self, product: &Product) -> Result<(), KernelError> {
        if product.shape.contains(&0) {
            return Ok(());
        }
        self.device.bind()?;
        let form = Form::of(product);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(form) {
            std::collections::hash_map::Entry::Occupied(plan) => plan.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(self.plan(&form)?),
        };
        let (alpha, beta) = (&raw const product.alpha, &raw const product.beta);
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: the descriptions are alive, the scalars are read before the call returns, and the addresses are device
        // memory of the shapes described. Operands are swapped: see `plan`.
        unsafe {
            result::matmul(
                self.handle.0,
                plan.desc,
                alpha.cast(),
                beta.cast(),
                pointer(product.b.address),
                plan.layouts[0],
                pointer(product.a.address),
                plan.layouts[1],
                pointer(product.c),
                plan.layouts[2],
                pointer(product.c),
                plan.layouts[2],
                &raw const plan.algorithm,
                pointer(self.workspace.address()),
                WORKSPACE,
                self.device.stream().cu_stream().cast(),
            )
        }
        .map_err(|error| refused("cublasLtMatmul", error))
    }

    /// Describes a form and asks for its algorithm.
    ///
    /// The library counts columns first. A row-major matrix read so is its transpose, so `c^T = b^T a^T` is computed:
    /// the first operand is b, and "transposed" means the same as here.
    fn plan(&self, form: &Form) -> Result<Plan, KernelError> {
        let [m, n, k] = form.shape;
        let mut making = Making::new(form)?;
        making.layout(DataType::CUDA_R_16BF, if form.transposed[1] { [k, n] } else { [n, k] })?;
        making.layout(DataType::CUDA_R_16BF, if form.transposed[0] { [m, k] } else { [k, m] })?;
        let c = match form.element {
            Element::F32 => DataType::CUDA_R_32F,
            Element::Bf16 => DataType::CUDA_R_16BF,
        };
        making.layout(c, [n, m])?;
        making.finish(self.handle.0, form)
    }
}

/// Descriptions that are destroyed unless they become a plan.
struct Making {
    desc: sys::cublasLtMatmulDesc_t,
    layouts: Vec<sys::cublasLtMatrixLayout_t>,
}

impl Making {
    fn new(form: &Form) -> Result<Self, KernelError> {
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let desc = result::create_matmul_desc(compute, DataType::CUDA_R_32F)
            .map_err(|error| refused("cublasLtMatmulDescCreate", error))?;
        let making = Self { desc, layouts: Vec::new() };
        let [a, b] = form.transposed;
        for (attribute, transposed) in
            [(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, b), (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, a)]
        {
            let value = i32::from(transposed); // CUBLAS_OP_N, CUBLAS_OP_T
            // SAFETY: the description is alive and copies the value.
            unsafe {
                result::set_matmul_desc_attribute(desc, attribute, (&raw const value).cast(), size_of_val(&value))
            }
            .map_err(|error| refused("cublasLtMatmulDescSetAttribute", error))?;
        }
        Ok(making)
    }

    fn layout(&mut self, kind: DataType, [rows, columns]: [usize; 2]) -> Result<(), KernelError> {
        let layout = result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)
            .map_err(|error| refused("cublasLtMatrixLayoutCreate", error))?;
        self.layouts.push(layout);
        Ok(())
    }

    fn finish(mut self, handle: sys::cublasLtHandle_t, form: &Form) -> Result<Plan, KernelError> {
        let preference = Preferences::new()?;
        let [a, b, c] = form.alignments;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE as u64))?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &(b as u32))?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &(a as u32))?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &(c as u32))?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &(c as u32))?;
        let [first, second, third] = self.layouts[..] else { unreachable!("three operands are described") };
        // SAFETY: all descriptions are alive.
        let found =
            unsafe { result::get_matmul_algo_heuristic(handle, self.desc, first, second, third, third, preference.0) };
        let found = found.map_err(|error| {
            let [m, n, k] = form.shape;
            let reason = format!("no algorithm for a product of [{m}, {k}] and [{k}, {n}]: {error}");
            KernelError::Device { operation: "cublasLtMatmulAlgoGetHeuristic", reason }
        })?;
        self.layouts.clear(); // the plan's now
        let desc = std::mem::replace(&mut self.desc, std::ptr::null_mut());
        Ok(Plan { desc, layouts: [first, second, third], algorithm: found.algo })
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // SAFETY: what is still here was made and given to nobody.
        unsafe {
            if !self.desc.is_null() {
                let _ = result::destroy_matmul_desc(self.desc);
            }
            for layout in self.layouts.drain(..) {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// What an algorithm may rely on and use.
struct Preferences(sys::cublasLtMatmulPreference_t);

impl Preferences {
    fn new() -> Result<Self, KernelError> {
        result::create_matmul_pref().map(Self).map_err(|error| refused("cublasLtMatmulPreferenceCreate", error))
    }

    fn set<T>(&self, attribute: Preference, value: &T) -> Result<(), KernelError> {
        // SAFETY: the preference is alive and copies the value.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of_val(value))
        }
        .map_err(|error| refused("cublasLtMatmulPreferenceSetAttribute", error))
    }
}

impl Drop for Preferences {
    fn drop(&mut self) {
        // SAFETY: made by `new`, used by nobody any more.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn refused(operation: &'static str, error: CublasError) -> KernelError {
    KernelError::Device { operation, reason: format!("{:?}", error.0) }
}
