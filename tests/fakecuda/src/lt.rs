//! cuBLASLt's descriptors and the product they describe. Pure but for the device's memory.
//!
//! `D = alpha * op(A) * op(B) + beta * C`; the sum over k is `gemm`'s, then `alpha * sum`, then `+ beta * C` in float32,
//! then one rounding to D's type. With beta zero C is not read.

use half::bf16;

use crate::codes::{Code, LtCode};
use crate::gemm::{View, product};
use crate::health::Failure;
use crate::memory::Book;

/// An element type (`cudaDataType_t`) that the stand-in knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// `CUDA_R_32F`.
    F32,
    /// `CUDA_R_16BF`.
    Bf16,
}

impl Element {
    fn from_number(number: i32) -> Result<Element, LtCode> {
        match number {
            0 => Ok(Element::F32),
            14 => Ok(Element::Bf16),
            _ => Err(LtCode::NOT_SUPPORTED),
        }
    }

    fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }

    fn widen(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Element::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Element::Bf16 => bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        }
    }

    fn narrow(self, value: f32, bytes: &mut [u8]) {
        match self {
            Element::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
            Element::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        }
    }
}

/// `cublasLtMatrixLayout_t`: the attributes as they were set; `operand` checks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    element: i32,
    order: i32,
    rows: u64,
    cols: u64,
    ld: i64,
    batch: i32,
    stride: i64,
}

impl Layout {
    /// A column-major matrix, one of a batch of one.
    pub fn new(element: i32, rows: u64, cols: u64, ld: i64) -> Layout {
        Layout { element, order: 0, rows, cols, ld, batch: 1, stride: 0 }
    }

    /// Sets a `cublasLtMatrixLayoutAttribute_t`.
    pub fn set(&mut self, attribute: i32, value: &[u8]) -> Result<(), LtCode> {
        match attribute {
            0 => self.element = int(value)?,
            1 => self.order = int(value)?,
            2 => self.rows = long(value)? as u64,
            3 => self.cols = long(value)? as u64,
            4 => self.ld = long(value)?,
            5 => self.batch = int(value)?,
            6 => self.stride = long(value)?,
            _ => return Err(LtCode::NOT_SUPPORTED),
        }
        Ok(())
    }

    /// The layout with its numbers checked.
    fn operand(&self) -> Result<Operand, LtCode> {
        let element = Element::from_number(self.element)?;
        let (rows, cols) = (self.rows as usize, self.cols as usize);
        let ld = usize::try_from(self.ld).map_err(|_| LtCode::INVALID_VALUE)?;
        let (row_step, col_step, least) = match self.order {
            0 => (1, ld, rows),
            1 => (ld, 1, cols),
            _ => return Err(LtCode::NOT_SUPPORTED),
        };
        let batch = usize::try_from(self.batch).ok().filter(|batch| *batch > 0).ok_or(LtCode::INVALID_VALUE)?;
        if rows == 0 || cols == 0 || ld < least {
            return Err(LtCode::INVALID_VALUE);
        }
        Ok(Operand { element, rows, cols, row_step, col_step, batch, stride: self.stride })
    }
}

/// `cublasLtMatmulDesc_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    compute: i32,
    scale: i32,
    transposed: [bool; 2],
    epilogue: i32,
}

impl Description {
    /// A product of matrices as they are, with no epilogue.
    pub fn new(compute: i32, scale: i32) -> Description {
        Description { compute, scale, transposed: [false; 2], epilogue: 1 }
    }

    /// Sets a `cublasLtMatmulDescAttributes_t`.
    pub fn set(&mut self, attribute: i32, value: &[u8]) -> Result<(), LtCode> {
        match attribute {
            0 => self.compute = int(value)?,
            1 => self.scale = int(value)?,
            3 | 4 => self.transposed[attribute as usize - 3] = transposed(int(value)?)?,
            7 => self.epilogue = int(value)?,
            // Scalars in host memory and C as it is are all that is modelled; how many processors are used does not matter.
            2 | 5 if int(value)? != 0 => return Err(LtCode::NOT_SUPPORTED),
            2 | 5 | 15 => {}
            _ => return Err(LtCode::NOT_SUPPORTED),
        }
        Ok(())
    }

    /// Float32 sums of float32 or TF32 products (TF32's rounding is not modelled), float32 scalars, no epilogue.
    fn check(&self) -> Result<(), LtCode> {
        let known = matches!(self.compute, 68 | 69 | 77) && self.scale == 0 && self.epilogue == 1;
        if known { Ok(()) } else { Err(LtCode::NOT_SUPPORTED) }
    }
}

fn transposed(operation: i32) -> Result<bool, LtCode> {
    match operation {
        0 => Ok(false),
        // The conjugate of a real number is the number.
        1 | 2 => Ok(true),
        _ => Err(LtCode::INVALID_VALUE),
    }
}

fn int(value: &[u8]) -> Result<i32, LtCode> {
    value.try_into().map(i32::from_le_bytes).map_err(|_| LtCode::INVALID_VALUE)
}

fn long(value: &[u8]) -> Result<i64, LtCode> {
    value.try_into().map(i64::from_le_bytes).map_err(|_| LtCode::INVALID_VALUE)
}

/// A matrix as it lies in memory. Steps and stride count elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Operand {
    element: Element,
    rows: usize,
    cols: usize,
    row_step: usize,
    col_step: usize,
    batch: usize,
    stride: i64,
}

impl Operand {
    fn transposed(self) -> Operand {
        Operand { rows: self.cols, cols: self.rows, row_step: self.col_step, col_step: self.row_step, ..self }
    }

    /// Elements from the first to the last of one matrix.
    fn span(&self) -> usize {
        (self.rows - 1) * self.row_step + (self.cols - 1) * self.col_step + 1
    }

    fn address(&self, base: u64, batch: usize) -> u64 {
        let step = if self.batch == 1 { 0 } else { self.stride * batch as i64 };
        base.wrapping_add_signed(step * self.element.bytes() as i64)
    }

    fn read(&self, name: &str, base: u64, batch: usize, book: &Book) -> Result<Vec<f32>, Failure> {
        let mut bytes = vec![0; self.span() * self.element.bytes()];
        book.read(self.address(base, batch), &mut bytes).map_err(|bad| {
            let Operand { rows, cols, .. } = self;
            Failure::new(Code::ILLEGAL_ADDRESS, format!("cublasLtMatmul: operand {name} [{rows}, {cols}]: {bad}"))
        })?;
        Ok(self.element.widen(&bytes))
    }

    fn view<'a>(&self, data: &'a [f32]) -> View<'a> {
        View { data, row_step: self.row_step, col_step: self.col_step }
    }
}

/// A product that fits together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    a: Operand,
    b: Operand,
    c: Operand,
    d: Operand,
}

/// Where the operands are, and the scalars.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Device address of A.
    pub a: u64,
    /// Device address of B.
    pub b: u64,
    /// Device address of C; anything when `beta` is zero.
    pub c: u64,
    /// Device address of D, which may be C's.
    pub d: u64,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of C.
    pub beta: f32,
}

impl Plan {
    /// Checks shapes, types and batches.
    pub fn new(how: &Description, a: &Layout, b: &Layout, c: &Layout, d: &Layout) -> Result<Plan, LtCode> {
        how.check()?;
        let turn = |operand: Operand, transposed| if transposed { operand.transposed() } else { operand };
        let a = turn(a.operand()?, how.transposed[0]);
        let b = turn(b.operand()?, how.transposed[1]);
        let (c, d) = (c.operand()?, d.operand()?);
        let shapes = a.rows == d.rows && b.cols == d.cols && a.cols == b.rows && (c.rows, c.cols) == (d.rows, d.cols);
        let batches = [a, b, c].iter().all(|operand| operand.batch == d.batch);
        if !shapes || !batches {
            return Err(LtCode::INVALID_VALUE);
        }
        let types = a.element == b.element && c.element == d.element;
        // bfloat16 may give either type, float32 only itself.
        if !types || (a.element == Element::F32 && d.element != Element::F32) {
            return Err(LtCode::NOT_SUPPORTED);
        }
        Ok(Plan { a, b, c, d })
    }

    /// A word about the product for the log.
    pub fn summary(&self) -> String {
        let Plan { a, d, .. } = self;
        format!("m={} n={} k={} batch={} {:?}->{:?}", d.rows, d.cols, a.cols, d.batch, a.element, d.element)
    }

    /// Computes the product.
    pub fn run(&self, call: &Call, book: &Book) -> Result<(), Failure> {
        (0..self.d.batch).try_for_each(|batch| self.run_one(call, batch, book))
    }

    fn run_one(&self, call: &Call, batch: usize, book: &Book) -> Result<(), Failure> {
        let Plan { a, b, c, d } = self;
        let (left, right) = (a.read("A", call.a, batch, book)?, b.read("B", call.b, batch, book)?);
        let sums = product(a.view(&left), b.view(&right), d.rows, d.cols, a.cols);
        let old = if call.beta == 0.0 { None } else { Some(c.read("C", call.c, batch, book)?) };
        let value = |row: usize, col: usize| {
            let scaled = call.alpha * sums[row * d.cols + col];
            let old = old.as_ref().map(|old| old[row * c.row_step + col * c.col_step]);
            old.map_or(scaled, |old| scaled + call.beta * old)
        };
        self.store(call.d, batch, book, value)
    }

    /// Writes D line by line: what lies between the lines is somebody else's.
    fn store(&self, base: u64, batch: usize, book: &Book, value: impl Fn(usize, usize) -> f32) -> Result<(), Failure> {
        let d = &self.d;
        let size = d.element.bytes();
        let (address, span) = (d.address(base, batch), d.span() * size);
        let (block, offset) = book.find(address, span as u64).map_err(|bad| {
            Failure::new(Code::ILLEGAL_ADDRESS, format!("cublasLtMatmul: operand D [{}, {}]: {bad}", d.rows, d.cols))
        })?;
        let by_column = d.row_step == 1;
        let (lines, length) = if by_column { (d.cols, d.rows) } else { (d.rows, d.cols) };
        let mut bytes = vec![0; length * size];
        for line in 0..lines {
            for (index, bytes) in bytes.chunks_exact_mut(size).enumerate() {
                d.element.narrow(if by_column { value(index, line) } else { value(line, index) }, bytes);
            }
            let step = if by_column { d.col_step } else { d.row_step };
            block.words.write(offset + line * step * size, &bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F32: i32 = 0;
    const BF16: i32 = 14;

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let how = Description::new(68, F32);
        let matrix = |rows, cols| Layout::new(F32, rows, cols, rows as i64);
        let plan = |a: Layout, b: Layout, d: Layout| Plan::new(&how, &a, &b, &d, &d).map(drop);
        assert_eq!(plan(matrix(2, 3), matrix(3, 4), matrix(2, 4)), Ok(()));
        assert_eq!(plan(matrix(2, 3), matrix(2, 4), matrix(2, 4)), Err(LtCode::INVALID_VALUE));
        assert_eq!(plan(Layout::new(F32, 2, 3, 1), matrix(3, 4), matrix(2, 4)), Err(LtCode::INVALID_VALUE));
        assert_eq!(plan(Layout::new(BF16, 2, 3, 2), matrix(3, 4), matrix(2, 4)), Err(LtCode::NOT_SUPPORTED));
        assert_eq!(plan(Layout::new(2, 2, 3, 2), matrix(3, 4), matrix(2, 4)), Err(LtCode::NOT_SUPPORTED));
    }

    #[test]
    fn an_epilogue_or_a_sum_in_half_is_refused() {
        let matrix = Layout::new(F32, 2, 2, 2);
        let plan = |how: Description| Plan::new(&how, &matrix, &matrix, &matrix, &matrix).map(drop);
        let mut relu = Description::new(68, F32);
        relu.set(7, &2_i32.to_le_bytes()).unwrap();
        assert_eq!(plan(relu), Err(LtCode::NOT_SUPPORTED));
        assert_eq!(plan(Description::new(64, F32)), Err(LtCode::NOT_SUPPORTED));
        assert_eq!(relu.set(7, &[1]), Err(LtCode::INVALID_VALUE));
    }

    #[test]
    fn rows_and_batches_and_gaps_are_respected() {
        // D is row-major with lines of 3 of which 2 are used, two matrices 8 elements apart; the gaps stay poison.
        let book = Book::new(0x1000, 1 << 16);
        let (a, b, d) = (book.allocate(16).unwrap(), book.allocate(16).unwrap(), book.allocate(64).unwrap());
        let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        book.write(a, &floats(&[1.0, 2.0, 3.0, 4.0])).unwrap();
        book.write(b, &floats(&[10.0, 20.0, 30.0, 40.0])).unwrap();
        let batched = |rows, cols, ld, stride: i64, row_major: i32| {
            let mut layout = Layout::new(F32, rows, cols, ld);
            layout.set(1, &row_major.to_le_bytes()).unwrap();
            layout.set(5, &2_i32.to_le_bytes()).unwrap();
            layout.set(6, &stride.to_le_bytes()).unwrap();
            layout
        };
        let (la, lb, ld) = (batched(2, 1, 2, 2, 0), batched(1, 2, 1, 2, 0), batched(2, 2, 3, 8, 1));
        let plan = Plan::new(&Description::new(68, F32), &la, &lb, &ld, &ld).unwrap();
        plan.run(&Call { a, b, c: 0, d, alpha: 2.0, beta: 0.0 }, &book).unwrap();
        let mut bytes = [0; 64];
        book.read(d, &mut bytes).unwrap();
        let got: Vec<f32> = Element::F32.widen(&bytes);
        let kept: Vec<f32> = got.iter().copied().filter(|x| !x.is_nan()).collect();
        assert_eq!(kept, [20.0, 40.0, 40.0, 80.0, 180.0, 240.0, 240.0, 320.0]);
        assert!([2, 5, 6, 7, 10, 13, 14, 15].iter().all(|i| got[*i].is_nan()), "{got:?}");
    }

    #[test]
    fn an_operand_out_of_bounds_is_named() {
        let book = Book::new(0x1000, 1 << 16);
        let (good, short) = (book.allocate(16).unwrap(), book.allocate(12).unwrap());
        let matrix = Layout::new(F32, 2, 2, 2);
        let plan = Plan::new(&Description::new(68, F32), &matrix, &matrix, &matrix, &matrix).unwrap();
        let run = |a, b, d| plan.run(&Call { a, b, c: d, d, alpha: 1.0, beta: 0.0 }, &book).unwrap_err();
        for (name, failure) in
            [("A", run(short, good, good)), ("B", run(good, short, good)), ("D", run(good, good, short))]
        {
            assert_eq!(failure.code, Code::ILLEGAL_ADDRESS);
            assert!(failure.message.contains(&format!("operand {name}")), "{}", failure.message);
        }
    }
}
