//! cuBLASLt's products through cudarc on the stand-in: bit for bit the plain loop.
#![expect(unsafe_code, reason = "cudarc's raw calls are unsafe")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{self, cublasComputeType_t, cublasStatus_t, cudaDataType_t};
use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::{CudaContext, CudaStream};
use half::bf16;
use support::{name_of, on_fakecuda};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Element {
    F32,
    Bf16,
}

impl Element {
    fn number(self) -> cudaDataType_t {
        match self {
            Element::F32 => cudaDataType_t::CUDA_R_32F,
            Element::Bf16 => cudaDataType_t::CUDA_R_16BF,
        }
    }

    fn pack(self, values: &[f32]) -> Vec<u8> {
        match self {
            Element::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        }
    }

    fn unpack(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Element::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Element::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        }
    }
}

/// A column-major matrix: values that bfloat16 holds exactly, so that only the product rounds.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    cols: usize,
    ld: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn new(rows: usize, cols: usize, gap: usize, seed: u32) -> Matrix {
        let ld = rows + gap;
        let value = |i: u32| ((i + seed).wrapping_mul(2_654_435_761) >> 25) as f32 / 32.0 - 2.0;
        Matrix { rows, cols, ld, values: (0..(ld * cols) as u32).map(value).collect() }
    }

    fn at(&self, transposed: bool, row: usize, col: usize) -> f32 {
        let (row, col) = if transposed { (col, row) } else { (row, col) };
        self.values[row + col * self.ld]
    }
}

/// One product: types, transposes, scalars, and whether D is C.
#[derive(Clone, Copy, Debug)]
struct Case {
    input: Element,
    output: Element,
    transposed: [bool; 2],
    alpha: f32,
    beta: f32,
    in_place: bool,
}

const SHAPE: (usize, usize, usize) = (13, 9, 21);

fn multiply(stream: &Arc<CudaStream>, case: &Case) -> Result<(), CublasError> {
    let (m, n, k) = SHAPE;
    let stored = |rows: usize, cols: usize, transposed: bool, seed| {
        if transposed { Matrix::new(cols, rows, 3, seed) } else { Matrix::new(rows, cols, 3, seed) }
    };
    let (a, b) = (stored(m, k, case.transposed[0], 1), stored(k, n, case.transposed[1], 2));
    let (c, d) = (Matrix::new(m, n, 2, 3), Matrix::new(m, n, if case.in_place { 2 } else { 5 }, 4));
    let upload = |matrix: &Matrix, element: Element| stream.clone_htod(&element.pack(&matrix.values)).unwrap();
    let (da, db) = (upload(&a, case.input), upload(&b, case.input));
    let (dc, dd) = (upload(&c, case.output), upload(&d, case.output));
    let address = |slice: &cudarc::driver::CudaSlice<u8>| cudarc::driver::DevicePtr::device_ptr(slice, stream).0;
    let target = if case.in_place { address(&dc) } else { address(&dd) };
    let layout = |matrix: &Matrix, element: Element| {
        result::create_matrix_layout(element.number(), matrix.rows as u64, matrix.cols as u64, matrix.ld as i64)
    };
    let handle = result::create_handle()?;
    let how = result::create_matmul_desc(cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType_t::CUDA_R_32F)?;
    for (attribute, transposed) in [
        (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, case.transposed[0]),
        (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, case.transposed[1]),
    ] {
        let value = transposed as i32;
        unsafe { result::set_matmul_desc_attribute(how, attribute, (&raw const value).cast(), 4) }?;
    }
    let (la, lb) = (layout(&a, case.input)?, layout(&b, case.input)?);
    let (lc, ld) = (layout(&c, case.output)?, layout(if case.in_place { &c } else { &d }, case.output)?);
    let preference = result::create_matmul_pref()?;
    let bytes = 0_usize;
    let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    unsafe { result::set_matmul_pref_attribute(preference, attribute, (&raw const bytes).cast(), 8) }?;
    let found = unsafe { result::get_matmul_algo_heuristic(handle, how, la, lb, lc, ld, preference) }?;
    let pointer = |address: u64| address as *mut c_void;
    unsafe {
        result::matmul(
            handle,
            how,
            (&raw const case.alpha).cast(),
            (&raw const case.beta).cast(),
            pointer(address(&da)),
            la,
            pointer(address(&db)),
            lb,
            pointer(address(&dc)),
            lc,
            pointer(target),
            ld,
            &raw const found.algo,
            std::ptr::null_mut(),
            0,
            stream.cu_stream().cast(),
        )
    }?;
    let got = case.output.unpack(&stream.clone_dtoh(if case.in_place { &dc } else { &dd }).unwrap());
    let mut expected = if case.in_place { c.clone() } else { d };
    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
        let product = |p| a.at(case.transposed[0], i, p) * b.at(case.transposed[1], p, j);
        let scaled = case.alpha * (0..k).fold(0.0, |sum, p| sum + product(p));
        let value = if case.beta == 0.0 { scaled } else { scaled + case.beta * c.at(false, i, j) };
        let rounded = case.output.unpack(&case.output.pack(&[value]))[0];
        expected.values[i + j * expected.ld] = rounded;
    }
    assert_eq!(got, expected.values, "{case:?}");
    unsafe {
        [la, lb, lc, ld].into_iter().try_for_each(|layout| result::destroy_matrix_layout(layout))?;
        result::destroy_matmul_pref(preference)?;
        result::destroy_matmul_desc(how)?;
        result::destroy_handle(handle)
    }
}

#[test]
fn every_transpose_and_type_gives_the_bits_of_the_plain_loop() {
    on_fakecuda("every_transpose_and_type_gives_the_bits_of_the_plain_loop", &[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let types = [(Element::F32, Element::F32), (Element::Bf16, Element::Bf16), (Element::Bf16, Element::F32)];
        for (input, output) in types {
            for transposed in [[false, false], [false, true], [true, false], [true, true]] {
                for (alpha, beta, in_place) in [(1.0, 0.0, true), (0.5, 1.0, true), (-2.0, 0.25, false)] {
                    multiply(&stream, &Case { input, output, transposed, alpha, beta, in_place }).unwrap();
                }
            }
        }
        let mixed = Case {
            input: Element::F32,
            output: Element::Bf16,
            transposed: [false; 2],
            alpha: 1.0,
            beta: 0.0,
            in_place: true,
        };
        let status = multiply(&stream, &mixed).unwrap_err().0;
        assert_eq!(status, cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
    });
}

fn config(m: u64, n: u64, k: u64) -> MatmulConfig {
    MatmulConfig {
        transa: false,
        transb: false,
        transc: false,
        m,
        n,
        k,
        alpha: 1.0,
        lda: m as i64,
        ldb: k as i64,
        beta: 0.0,
        ldc: m as i64,
        stride_a: None,
        stride_b: None,
        stride_c: None,
        stride_bias: None,
        batch_size: None,
    }
}

#[test]
fn cudarcs_own_wrapper_works_with_batches() {
    on_fakecuda("cudarcs_own_wrapper_works_with_batches", &[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let blas = CudaBlasLT::new(stream.clone()).unwrap();
        let a = stream.clone_htod(&[1_f32, 2.0, 10.0, 20.0]).unwrap();
        let b = stream.clone_htod(&[3_f32, 4.0, 5.0, 6.0]).unwrap();
        let mut c = stream.alloc_zeros::<f32>(8).unwrap();
        let strides = |x| Some(x);
        let batched = MatmulConfig {
            batch_size: Some(2),
            stride_a: strides(2),
            stride_b: strides(2),
            stride_c: strides(4),
            ..config(2, 2, 1)
        };
        unsafe { blas.matmul(batched, &a, &b, &mut c, None, None) }.unwrap();
        assert_eq!(stream.clone_dtoh(&c).unwrap(), [3.0, 6.0, 4.0, 8.0, 50.0, 100.0, 60.0, 120.0]);
    });
}

#[test]
fn an_operand_out_of_bounds_is_told_and_sticks() {
    let said = on_fakecuda("an_operand_out_of_bounds_is_told_and_sticks", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let blas = CudaBlasLT::new(stream.clone()).unwrap();
        let a = stream.alloc_zeros::<f32>(11).unwrap();
        let b = stream.alloc_zeros::<f32>(12).unwrap();
        let mut c = stream.alloc_zeros::<f32>(16).unwrap();
        unsafe { blas.matmul(config(4, 4, 3), &a, &b, &mut c, None, None) }.unwrap();
        assert_eq!(name_of(stream.synchronize()), "CUDA_ERROR_ILLEGAL_ADDRESS");
        let status = unsafe { blas.matmul(config(4, 4, 1), &a, &b, &mut c, None, None) }.unwrap_err().0;
        assert_eq!(status, cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED);
    });
    assert!(said.err.contains("operand A [4, 3]"), "{}", said.err);
}

#[test]
fn a_planned_fault_strikes_a_product() {
    let settings = [("INSULA_FAKECUDA_FAIL", "cublasLtMatmul:2:13")];
    on_fakecuda("a_planned_fault_strikes_a_product", &settings, || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let blas = CudaBlasLT::new(stream.clone()).unwrap();
        let a = stream.alloc_zeros::<f32>(4).unwrap();
        let mut c = stream.alloc_zeros::<f32>(4).unwrap();
        let mut run = || unsafe { blas.matmul(config(2, 2, 2), &a, &a, &mut c, None, None) };
        let outcomes: Vec<_> = (0..3).map(|_| run().is_ok()).collect();
        assert_eq!(outcomes, [true, false, true]);
    });
}
