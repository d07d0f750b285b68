//! `CityHash128` of version 1.0.2, which is the checksum of ClickHouse's own blocks. Later versions of it give other
//! values.

const K0: u64 = 0xc3a5_c85c_97cb_3127;
const K1: u64 = 0xb492_b66f_be98_f273;
const K2: u64 = 0x9ae1_6a3b_2f90_404f;
const K3: u64 = 0xc949_d7c7_509e_6557;
const MUL: u64 = 0x9ddf_ea08_eb38_2d69;

/// The hash of `bytes`, its lower half first.
pub(super) fn hash(bytes: &[u8]) -> [u8; 16] {
    let len = bytes.len();
    let (low, high) = if len >= 16 {
        let seed = (word(bytes, 0) ^ K3, word(bytes, 8));
        seeded(bytes.get(16..).unwrap_or_default(), seed)
    } else if len >= 8 {
        let seed = (word(bytes, 0) ^ (len as u64).wrapping_mul(K0), word(bytes, len - 8) ^ K1);
        seeded(&[], seed)
    } else {
        seeded(bytes, (K0, K1))
    };
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

/// Eight bytes at `at`; zero for what is not there.
fn word(bytes: &[u8], at: usize) -> u64 {
    let there = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>);
    there.map_or(0, |eight| u64::from_le_bytes(*eight))
}

/// Four bytes at `at`.
fn half(bytes: &[u8], at: usize) -> u64 {
    let there = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>);
    there.map_or(0, |four| u64::from(u32::from_le_bytes(*four)))
}

fn mixed(value: u64) -> u64 {
    value ^ value >> 47
}

fn of_two(low: u64, high: u64) -> u64 {
    let first = mixed((low ^ high).wrapping_mul(MUL));
    mixed((high ^ first).wrapping_mul(MUL)).wrapping_mul(MUL)
}

/// The hash of at most 16 bytes.
fn of_few(bytes: &[u8]) -> u64 {
    let len = bytes.len();
    let byte = |at: usize| bytes.get(at).map_or(0, |byte| u64::from(*byte));
    match len {
        9.. => {
            let last = word(bytes, len - 8);
            let turned =
                last.wrapping_add(len as u64).rotate_right(u32::try_from(len).unwrap_or(0));
            of_two(word(bytes, 0), turned) ^ last
        }
        4..=8 => {
            let first = (half(bytes, 0) << 3).wrapping_add(len as u64);
            of_two(first, half(bytes, len - 4))
        }
        1..=3 => {
            let first = byte(0) + (byte(len / 2) << 8);
            let second = len as u64 + (byte(len - 1) << 2);
            mixed(first.wrapping_mul(K2) ^ second.wrapping_mul(K3)).wrapping_mul(K2)
        }
        0 => K2,
    }
}

/// A weak hash of 32 bytes at `at`.
#[expect(clippy::many_single_char_names, reason = "they are those of the algorithm's description")]
fn weak(bytes: &[u8], at: usize, (a, b): (u64, u64)) -> (u64, u64) {
    let [w, x, y, z] = [0, 8, 16, 24].map(|more| word(bytes, at + more));
    let a = a.wrapping_add(w);
    let b = b.wrapping_add(a).wrapping_add(z).rotate_right(21);
    let sum = a.wrapping_add(x).wrapping_add(y);
    (sum.wrapping_add(z), b.wrapping_add(sum.rotate_right(44)).wrapping_add(a))
}

fn murmur(bytes: &[u8], (mut a, mut b): (u64, u64)) -> (u64, u64) {
    let len = bytes.len();
    let (mut c, mut d);
    if len <= 16 {
        a = mixed(a.wrapping_mul(K1)).wrapping_mul(K1);
        c = b.wrapping_mul(K1).wrapping_add(of_few(bytes));
        d = mixed(a.wrapping_add(if len >= 8 { word(bytes, 0) } else { c }));
    } else {
        c = of_two(word(bytes, len - 8).wrapping_add(K1), a);
        d = of_two(b.wrapping_add(len as u64), c.wrapping_add(word(bytes, len - 16)));
        a = a.wrapping_add(d);
        for at in (0..len - 16).step_by(16) {
            a ^= mixed(word(bytes, at).wrapping_mul(K1)).wrapping_mul(K1);
            a = a.wrapping_mul(K1);
            b ^= a;
            c ^= mixed(word(bytes, at + 8).wrapping_mul(K1)).wrapping_mul(K1);
            c = c.wrapping_mul(K1);
            d ^= c;
        }
    }
    let (a, b) = (of_two(a, c), of_two(d, b));
    (a ^ b, of_two(b, a))
}

/// The hash of any bytes under a seed.
#[expect(clippy::many_single_char_names, reason = "they are those of the algorithm's description")]
fn seeded(bytes: &[u8], seed: (u64, u64)) -> (u64, u64) {
    let len = bytes.len();
    if len < 128 {
        return murmur(bytes, seed);
    }
    let (mut x, mut y) = seed;
    let mut z = (len as u64).wrapping_mul(K1);
    let first = (y ^ K1).rotate_right(49).wrapping_mul(K1).wrapping_add(word(bytes, 0));
    let second = first.rotate_right(42).wrapping_mul(K1).wrapping_add(word(bytes, 8));
    let mut v = (first, second);
    let mut w = (
        y.wrapping_add(z).rotate_right(35).wrapping_mul(K1).wrapping_add(x),
        x.wrapping_add(word(bytes, 88)).rotate_right(53).wrapping_mul(K1),
    );
    let whole = len / 128 * 128;
    for at in (0..whole).step_by(64) {
        let sum = x.wrapping_add(y).wrapping_add(v.0).wrapping_add(word(bytes, at + 16));
        x = sum.rotate_right(37).wrapping_mul(K1) ^ w.1;
        let sum = y.wrapping_add(v.1).wrapping_add(word(bytes, at + 48));
        y = sum.rotate_right(42).wrapping_mul(K1) ^ v.0;
        z = (z ^ w.0).rotate_right(33);
        let seeds = (v.1.wrapping_mul(K1), x.wrapping_add(w.0));
        v = weak(bytes, at, seeds);
        w = weak(bytes, at + 32, (z.wrapping_add(w.1), y));
        std::mem::swap(&mut z, &mut x);
    }
    y = y.wrapping_add(w.0.rotate_right(37).wrapping_mul(K0)).wrapping_add(z);
    x = x.wrapping_add(v.0.wrapping_add(z).rotate_right(49).wrapping_mul(K0));
    // What is left is read from its end, and beyond its beginning.
    for done in (32..len - whole + 32).step_by(32) {
        let at = len - done;
        y = y.wrapping_sub(x).rotate_right(42).wrapping_mul(K0).wrapping_add(v.1);
        w.0 = w.0.wrapping_add(word(bytes, at + 16));
        x = x.rotate_right(49).wrapping_mul(K0).wrapping_add(w.0);
        w.0 = w.0.wrapping_add(v.0);
        v = weak(bytes, at, v);
    }
    x = of_two(x, v.0);
    y = of_two(y, w.0);
    let low = of_two(x.wrapping_add(v.1), w.1).wrapping_add(y);
    (low, of_two(x.wrapping_add(w.1), y.wrapping_add(v.1)))
}
