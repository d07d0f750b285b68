//! What other encoders made, for tests.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Lines with the numbers to 1,500, each modulo 97, by encoding: of Python's zlib, zstd and lz4, and Node's brotli. What
/// can have checksums has them.
const SAMPLES: [(&str, &str); 4] = [
    (
        "deflate",
        "eNrt0EcRAEEMA8H/oHEO/Ind0rgqA7AstaAYTpAUzbCooIoa6migiRba6KCLCfZuDHMssMQKa2ywxQVX/EU6HnjihTc++BJCKGHE+xhEEkU0\
         McSSQipppJOvUJJFNjnkUkIpZZRTQb2+RTU11NJCK22000En/eY0PfQywihjjDPBJFPMWzvMssIqa6yzwSZbyMEczMEczMEczMEczMEczMEc\
         zMEczMH8GeYD5zWCBA==",
    ),
    (
        "br",
        "G/MQ+I2UrHOL3GDs+5aUEQrxaMByrTwA6EKxVK7U1NbVFxoAIRjBYHF4NkFSNMPh8vhqQZRkRaPV6d2GadmOx+vzp4MwipNMNpefHgxH48nM\
         7Nz89mK5Wm92dvf2rw/H0/lyc3t3//14vt6fHwA=",
    ),
    (
        "zstd",
        "KLUv/QRoXQQAlhEgCbDrJEmIcFKYdRoAHQAdAFOfLj16Ozv048aLEx8uPHg5OfDbrulZjjuHMJ9scskkjyxyyJUpg3yxxRVTPLHEETdmDPF1\
         69V11K1ZQ3200UUTPbTQQZcmDfTNNtdM88wyx9yZc9M9t9xx9+YN99lml0322GKHXZs22FdbXTXVU0sBABnY5/DXFI/P2fo=",
    ),
    (
        "lz4",
        "BCJNGHxA9BAAAAAAAACnNAEAAP//CzAKMQoyCjMKNAo1CjYKNwo4CjkKMTAKMTEKMTIKMTMKMTQKMTUKMTYKMTcKMTgKMTkKMjAKMjEKMjIK\
         MjMKMjQKMjUKMjYKMjcKMjgKMjkKMzAKMzEKMzIKMzMKMzQKMzUKMzYKMzcKMzgKMzkKNDAKNDEKNDIKNDMKNDQKNDUKNDYKNDcKNDgKNDkK\
         NTAKNTEKNTIKNTMKNTQKNTUKNTYKNTcKNTgKNTkKNjAKNjEKNjIKNjMKNjQKNjUKNjYKNjcKNjgKNjkKNzAKNzEKNzIKNzMKNzQKNzUKNzYK\
         NzcKNzgKNzkKODAKODEKODIKODMKODQKODUKODYKODcKODgKODkKOTAKOTEKOTIKOTMKOTQKOTUKOTYKGQH////////////////////SUDMK\
         NDQK85gpQQAAAACWaAeI",
    ),
];

/// A text in each encoding but gzip.
pub(crate) fn samples() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    SAMPLES.into_iter().map(|(name, text)| (name, STANDARD.decode(text).unwrap()))
}

/// The same packed by gzip.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The checksum of a block's other bytes.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 16] {
    super::blocks::checksum(bytes)
}

/// What a frame of lz4 begins with: blocks of up to 4 MiB that do not refer to others, without checksums.
pub(crate) fn lz4_head() -> Vec<u8> {
    let described = [0x60, 0x70];
    let [_, check, ..] = xxhash_rust::xxh32::xxh32(&described, 0).to_le_bytes();
    [&[0x04, 0x22, 0x4d, 0x18][..], &described, &[check]].concat()
}
