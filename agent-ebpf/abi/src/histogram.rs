//! In: a duration in nanoseconds; out: its bucket. The buckets are those of a Prometheus native histogram of schema 2.
//!
//! Schema 2 has boundaries at 2^(i/4) **seconds**, upper bound inclusive. Bucket 0 holds everything up to 2^-23 s
//! (119 ns), bucket `n` durations in (2^((n-1)/4-23), 2^(n/4-23)] s, and the last everything above 2^6 s (64 s).
//! Boundaries are exact to a nanosecond up to 2 s and to one part in 10^6 above.

/// Exponent of two, in seconds, of the first bucket's upper bound.
pub const MIN_EXP: i32 = -23;
/// Exponent of two, in seconds, of the last finite upper bound.
pub const MAX_EXP: i32 = 6;
/// Buckets per power of two: 2^schema.
pub const PER_OCTAVE: i32 = 4;
/// Index of the bucket without upper bound.
pub const LAST: usize = ((MAX_EXP - MIN_EXP) * PER_OCTAVE) as usize + 1;
/// Number of buckets.
pub const BUCKETS: usize = LAST + 1;

/// 2^60 / 10^9 rounded down: scales nanoseconds so that one second is 2^60.
const SCALE: u64 = 1_152_921_504;
/// 2^63 x 2^(k/4) for k = 1, 2, 3, rounded down.
const QUARTERS: [u64; 3] =
    [10_968_499_650_544_839_023, 13_043_817_825_332_782_212, 15_511_800_964_685_064_948];

/// The bucket of a duration.
#[inline(always)]
pub const fn bucket_of(ns: u64) -> usize {
    if ns == 0 {
        return 0;
    }
    // Below 2^33 ns (8.6 s) the product fits; above, microseconds do, and beyond 2^43 ns all is far above the last bound.
    let (v, one_second) =
        if ns < 1 << 33 { (ns, 60) } else { (if ns < 1 << 43 { ns >> 10 } else { 1 << 33 }, 50) };
    let scaled = v * SCALE;
    let top = 63 - scaled.leading_zeros() as i32;
    let mantissa = scaled << (63 - top);
    let octave = top - one_second;
    let above = (mantissa > 1 << 63) as i32
        + (mantissa > QUARTERS[0]) as i32
        + (mantissa > QUARTERS[1]) as i32
        + (mantissa > QUARTERS[2]) as i32;
    let index = PER_OCTAVE * (octave - MIN_EXP) + above;
    if index <= 0 {
        0
    } else if index > LAST as i32 {
        LAST
    } else {
        index as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upper bound of a bucket in nanoseconds.
    fn bound(i: usize) -> f64 {
        (i as f64 / 4.0 + f64::from(MIN_EXP)).exp2() * 1e9
    }

    #[test]
    fn quarters_are_roots_of_two() {
        for (k, q) in QUARTERS.iter().enumerate() {
            let exact = (63.0 + (k + 1) as f64 / 4.0).exp2();
            assert!((*q as f64 / exact - 1.0).abs() < 1e-15);
        }
    }

    #[test]
    fn each_boundary_is_inclusive() {
        for i in 0..LAST {
            let b = bound(i);
            let below = b.floor() as u64;
            let tolerance = if b < 2e9 { 1 } else { (b / 1e6) as u64 };
            assert!(bucket_of(below - tolerance.min(below - 1)) <= i);
            assert_eq!(bucket_of(below - if b < 2e9 { 0 } else { tolerance }), i, "at {below}");
            assert_eq!(bucket_of(below + 1 + tolerance), i + 1, "above {below}");
        }
    }

    #[test]
    fn extremes() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(1), 0);
        assert_eq!(bucket_of(119), 0);
        assert_eq!(bucket_of(64_000_000_000 - 100_000), LAST - 1);
        assert_eq!(bucket_of(65_000_000_000), LAST);
        assert_eq!(bucket_of(u64::MAX), LAST);
        assert_eq!(bucket_of(1_000_000_000), bucket_of(999_999_999));
        assert_eq!(bucket_of(1_000_000_001), bucket_of(1_000_000_000) + 1);
    }

    #[test]
    fn monotone() {
        let mut last = 0;
        let mut ns = 1u64;
        while ns < 1 << 62 {
            let b = bucket_of(ns);
            assert!(b >= last);
            last = b;
            ns += 1 + ns / 64;
        }
    }
}
