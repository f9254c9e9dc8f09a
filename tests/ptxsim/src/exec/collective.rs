//! What the lanes of a warp do together: shuffles, votes, matrix loads and products.

use super::access::atomically;
use super::lane_shadow::ALL_LANES;
use super::warp::Warp;
use super::{Env, Outcome, banks, lanes, trouble};
use crate::fault::FaultKind;
use crate::program::{Address, Code, Row, Shuffle, Space, Type, Vote};

pub(super) fn execute(warp: &mut Warp, code: &Code, mask: u32) -> Outcome {
    match *code {
        Code::SyncWarp { members } => {
            warp.check_members(mask, members)?;
            warp.meet();
            Ok(())
        }
        Code::Shuffle { mode, to, valid, a, by, clamp, members } => {
            warp.check_members(mask, members)?;
            shuffle(warp, mode, (to, valid), [a, by, clamp], mask)
        }
        Code::Vote { mode, to, of, members } => {
            warp.check_members(mask, members)?;
            let set = warp.predicate(of) & mask;
            let all = |result: bool| if result { u32::MAX } else { 0 };
            match mode {
                Vote::Ballot => lanes(mask).for_each(|lane| warp.registers.w32[to as usize][lane] = set),
                Vote::Any => warp.registers.set_predicate(to, mask, all(set != 0)),
                Vote::All => warp.registers.set_predicate(to, mask, all(set == mask)),
                Vote::Uniform => warp.registers.set_predicate(to, mask, all(set == mask || set == 0)),
            }
            Ok(())
        }
        Code::Reduce { op, signed, to, a, members } => {
            warp.check_members(mask, members)?;
            let t = if signed { Type::S32 } else { Type::U32 };
            let x = warp.registers.w32[a as usize];
            let values = lanes(mask).map(|lane| u64::from(x[lane]));
            let result = values.reduce(|found, value| atomically(op, t, found, value, 0)).unwrap_or(0) as u32;
            lanes(mask).for_each(|lane| warp.registers.w32[to as usize][lane] = result);
            Ok(())
        }
        ref other => unreachable!("{other:?} is no instruction of a warp"),
    }
}

fn shuffle(
    warp: &mut Warp,
    mode: Shuffle,
    (to, valid): (Row, Option<Row>),
    [a, by, clamp]: [Row; 3],
    mask: u32,
) -> Outcome {
    let w32 = &mut warp.registers.w32;
    let (x, by, clamp) = (w32[a as usize], w32[by as usize], w32[clamp as usize]);
    let mut inside = 0;
    for lane in lanes(mask) {
        let (me, by, bound, segments) = (lane as u32, by[lane] & 31, clamp[lane] & 31, clamp[lane] >> 8 & 31);
        let greatest = (me & segments) | (bound & !segments & 31);
        let (source, valid) = match mode {
            Shuffle::Up => (me.wrapping_sub(by), me as i32 - by as i32 >= greatest as i32),
            Shuffle::Down => (me + by, me + by <= greatest),
            Shuffle::Butterfly => (me ^ by, me ^ by <= greatest),
            Shuffle::Index => {
                let source = (me & segments) | (by & !segments);
                (source, source <= greatest)
            }
        };
        let source = if valid { source } else { me };
        if mask >> source & 1 == 0 {
            return trouble(1 << lane, FaultKind::ShuffleSource { source });
        }
        inside |= u32::from(valid) << lane;
        w32[to as usize][lane] = x[source as usize];
    }
    if let Some(row) = valid {
        warp.registers.set_predicate(row, mask, inside);
    }
    Ok(())
}

/// Row and column of the first of the two elements that a lane's register holds, in 8 x 8 quarters of a fragment.
fn quarter(lane: usize) -> (usize, usize) {
    (lane / 4, lane % 4 * 2)
}

fn low(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

fn high(bits: u32) -> f32 {
    f32::from_bits(bits & 0xffff_0000)
}

/// D = A B + C for A [16, 16], B [16, 8] in bf16 and C, D [16, 8] in float32. Each element adds its 16 products to C in
/// the order of k, every sum rounded to nearest; the products are exact. Hardware adds in an order of its own.
pub(super) fn mma(warp: &mut Warp, mask: u32, to: &[Row; 4], a: &[Row; 4], b: &[Row; 2], c: &[Row; 4]) -> Outcome {
    Warp::check_full(mask)?;
    let w32 = &mut warp.registers.w32;
    let (mut left, mut right, mut sums) = ([[0.0_f32; 16]; 16], [[0.0_f32; 8]; 16], [[0.0_f32; 8]; 16]);
    for lane in lanes(mask) {
        let (row, column) = quarter(lane);
        // Quarters of A in the order (0,0), (8,0), (0,8), (8,8).
        for (at, &register) in a.iter().enumerate() {
            let bits = w32[register as usize][lane];
            let target = &mut left[row + at % 2 * 8];
            target[column + at / 2 * 8] = low(bits);
            target[column + at / 2 * 8 + 1] = high(bits);
        }
        // B is held by columns: the lane's `row` is the column here.
        for (at, &register) in b.iter().enumerate() {
            let bits = w32[register as usize][lane];
            right[column + at * 8][row] = low(bits);
            right[column + at * 8 + 1][row] = high(bits);
        }
        for (at, &register) in c.iter().enumerate() {
            sums[row + at / 2 * 8][column + at % 2] = f32::from_bits(w32[register as usize][lane]);
        }
    }
    for (sums, left) in sums.iter_mut().zip(&left) {
        for (x, right) in left.iter().zip(&right) {
            for (sum, y) in sums.iter_mut().zip(right) {
                *sum += x * y;
            }
        }
    }
    for lane in lanes(mask) {
        let (row, column) = quarter(lane);
        for (at, &register) in to.iter().enumerate() {
            w32[register as usize][lane] = sums[row + at / 2 * 8][column + at % 2].to_bits();
        }
    }
    Ok(())
}

impl Env<'_> {
    /// Loads 8 x 8 matrices of 16-bit elements: lanes 8i to 8i+7 give the addresses of matrix i's rows, 16 bytes each.
    pub(super) fn load_matrix(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        transposed: bool,
        to: &[Row],
        from: &Address,
    ) -> Outcome {
        Warp::check_full(mask)?;
        let giving = u32::MAX >> (32 - 8 * to.len());
        let place = self.place(warp, giving, Space::Shared, from, 16)?;
        self.counts.shared.loaded_bytes += 128 * to.len() as u64;
        self.counts.shared_bank_conflicts += banks::conflicts(&place.addresses, giving, 16);
        for lane in lanes(giving) {
            // Every lane receives elements of the row, whoever gave its address.
            self.note_shared_read(warp, 1 << lane, ALL_LANES, (place.addresses[lane], 16))?;
        }
        for (matrix, &register) in to.iter().enumerate() {
            let element = |row: usize, column: usize| {
                let at = place.addresses[matrix * 8 + row] as usize + column * 2;
                u32::from(self.shared[at]) | u32::from(self.shared[at + 1]) << 8
            };
            for lane in 0..32 {
                let (row, column) = quarter(lane);
                let (first, second) = if transposed {
                    (element(column, row), element(column + 1, row))
                } else {
                    (element(row, column), element(row, column + 1))
                };
                warp.registers.w32[register as usize][lane] = second << 16 | first;
            }
        }
        Ok(())
    }
}
