//! What reference encoders made: Python's gzip, zlib, lz4 and zstd, and Node's brotli.

use std::io::Write;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, write::GzEncoder};

use super::*;

fn unpack(packing: Packing, packed: &[u8]) -> Result<bool, whole::Flaw> {
    whole::unpack(packing, packed, |_| ())
}

const TEXT: &str = "SELECT 'the same, ' || repeat('the same, ', 100), \
     'the same, the same, the same, the same, the same, the same'";
const TEXTS: [(&str, &str); 5] = [
    (
        "gzip",
        "H4sIAAAAAAACAwt29XF1DlFQL8lIVShOzE3VUVBXqKlRKEotSE0s0UAW1lEwNDDQ1EFWSipLHQDfd2WgbgAAAA==",
    ),
    ("deflate", "eJwLdvVxdQ5RUC/JSFUoTsxN1VFQV6ipUShKLUhNLNFAFtZRMDQw0NRBVkoqSx0AQU0iSg=="),
    ("br", "G20ACIzUTvfOqGqQExY+hZICDjlwam03DrgtsGADTgN53gYfbB0i7zElQ56Y4an0D6oCAQ=="),
    ("zstd", "KLUv/SBunQEAZAJTRUxFQ1QgJ3RoZSBzYW1lLCAnIHx8IHJlcGVhdCgsIDEwMCksJwMAtUTAKc6o3HQC"),
    (
        "lz4",
        "BCJNGGxAbgAAAAAAAABMOQAAAPgPU0VMRUNUICd0aGUgc2FtZSwgJyB8fCByZXBlYXQoFwB4LCAxMDApLCsABjUADwoAD1Bz\
     YW1lJwAAAAA52/jp",
    ),
];
/// Blocks of lz4, zstd and plain bytes.
const BLOCKS: &str = "AAAAAAAAAAAAAAAAAAAAAIIzAAAAKAAAAPAZU0VMRUNUICd0aGUgc2FtZSwgJyB8fCByZXBlYXQoJ3RoZSBzYW1lLAAAAAAA\
     AAAAAAAAAAAAAACQLQAAAB4AAAAotS/9IB7dAACoICcsIDEwMCksICd0aGUgc2FtZSwgAQBbFCYAAAAAAAAAAAAAAAAAAAAA\
     AjEAAAAoAAAAIHRoZSBzYW1lLCB0aGUgc2FtZSwgdGhlIHNhbWUsIHRoZSBzYW1lJw==";
/// [`long`] with these, of several blocks: those of lz4 refer to earlier ones, and each has a checksum.
const LONGS: [(&str, &str); 3] = [
    ("br", "W1gNg96RYONQPVrhTrABY/Ni1hBdKkxZtSCEMPKgHHs4UzgMT7NbML+dYECDWNQ8"),
    (
        "zstd",
        "KLUv/aBZDQMAhAEAZAJJTlNFUlQgSU5UTyB0IEZPUk1BVCBDU1YKMAoxCjIKMwo0CjUKNgEAvv6PfD4BTQAACAoBAFUNORAC",
    ),
    (
        "lz4",
        "BCJNGFxAWQ0DAAAAAACWMQEAAP8XSU5TRVJUIElOVE8gdCBGT1JNQVQgQ1NWCjAKMQoyCjMKNAo1CjYOAP//////////////\
     ////////////////////////////////////////////////////////////////////////////////////////////////\
     ////////////////////////////////////////////////////////////////////////////////////////////////\
     ////////////////////////////////////////////////////////////////////////////////////////////////\
     ///////////////////////////////////////CUDAKMQoyVfWCRAoBAAAP4v//////////////////////////////////\
     ////////////////////////////////////////////////////////////////////////////////////////////////\
     ////////////////////////////////////////////////////////////////////////////////////////////////\
     ////////////////////////////////////////////////////////////////////////////////////////////////\
     ////////////////////6FAxCjIKM2yM510KAQAADw4A////////////////////////////////////////////////////\
     ////////////////////////////////////////////////////////////////////////////////////////////////\
     ////////////////////////////////////////////////////////////////////////////////////////////////\
     ////////////////////////////////////////////////////////////////////////////////////////////////\
     /+hQMgozCjSbbIWWFwAAAA/+//////////////////9OUAozCjQK1mJ93gAAAABih7u3",
    ),
];
const OF_BLOCKS: Packing = Packing { coding: None, blocks: true };

fn long() -> String {
    let rows: Vec<String> = (0..100_000).map(|n| format!("{}\n", n % 7)).collect();
    "INSERT INTO t FORMAT CSV\n".to_owned() + &rows.concat()
}

fn of(name: &str) -> Packing {
    Packing { coding: Some(Coding::of(name).unwrap()), blocks: false }
}

fn bytes(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_short_text_is_read_whole_and_nothing_may_stand_behind_it() {
    let samples = TEXTS.iter().map(|(name, text)| (of(name), *text));
    for (packing, text) in samples.chain([(OF_BLOCKS, BLOCKS)]) {
        let mut packed = bytes(text);
        let read = beginning(packing, &packed);
        assert_eq!((read.bytes.as_slice(), read.is_all), (TEXT.as_bytes(), true), "{packing:?}");
        packed.push(0);
        assert!(!beginning(packing, &packed).is_all, "{packing:?}");
        packed.pop();
        packed.extend_from_within(..);
        let twice = beginning(packing, &packed);
        assert!(!twice.is_all || twice.bytes == TEXT.repeat(2).as_bytes(), "{packing:?}");
    }
}

#[test]
fn what_is_cut_short_is_never_taken_for_whole_and_what_is_damaged_does_no_harm() {
    let samples = TEXTS.iter().map(|(name, text)| (of(name), *text));
    for (packing, text) in samples.chain([(OF_BLOCKS, BLOCKS)]) {
        let packed = bytes(text);
        // The ends of the blocks are ends of a body as well.
        let cuts = if packing.blocks { 0..60 } else { 0..packed.len() };
        for cut in cuts.filter(|cut| *cut != 51) {
            let read = beginning(packing, &packed[..cut]);
            assert!(!read.is_all, "{packing:?} {cut}");
            assert!(TEXT.as_bytes().starts_with(&read.bytes), "{packing:?} {cut}");
        }
        for at in 0..packed.len() {
            for flipped in 0..8 {
                let mut damaged = packed.clone();
                damaged[at] ^= 1 << flipped;
                assert!(beginning(packing, &damaged).bytes.len() <= MOST);
            }
        }
        assert!(!beginning(packing, b"SELECT 1").is_all, "{packing:?}");
        assert_eq!(beginning(packing, b"SELECT 1").bytes, b"", "{packing:?}");
    }
}

#[test]
fn what_is_read_to_its_end_has_no_flaw_and_anything_else_has() {
    let samples = || testing::samples().map(|(name, packed)| (of(name), packed));
    let others = TEXTS.iter().chain(&LONGS).map(|(name, text)| (of(name), bytes(text)));
    let gzipped = [(of("gzip"), gzip(long().as_bytes()))];
    for (packing, packed) in samples().chain(others).chain(gzipped) {
        assert_eq!(unpack(packing, &packed), Ok(true), "{packing:?}");
        let behind = [&packed[..], b"more than a head"].concat();
        let flaw = |is_cut| Err(whole::Flaw { of: packing.coding, is_cut });
        assert_eq!(unpack(packing, &behind), flaw(false), "{packing:?}");
        let is_one = packing.coding == Some(Coding::Br);
        let twice = if is_one { flaw(false) } else { Ok(true) };
        assert_eq!(unpack(packing, &[&packed[..], &packed].concat()), twice, "{packing:?}");
        for cut in 1..packed.len() {
            assert!(unpack(packing, &packed[..cut]).is_err(), "{packing:?} {cut}");
        }
        let blocks = Packing { blocks: true, ..packing };
        assert!(unpack(blocks, &packed).is_err(), "{packing:?}: it has no blocks");
    }
    // Whatever bit is wrong, the checksum says so; brotli has none.
    for (packing, packed) in samples().filter(|(packing, _)| packing.coding != Some(Coding::Br)) {
        for at in 0..packed.len() {
            for flipped in 0..8 {
                let mut damaged = packed.clone();
                damaged[at] ^= 1 << flipped;
                let read = unpack(packing, &damaged);
                assert!(read != Ok(true) || is_same(packing, &packed, &damaged), "{at} {flipped}");
            }
        }
    }
    assert_eq!(unpack(of("gzip"), b""), Ok(true));
}

/// Whether two packed texts become the same one.
fn is_same(packing: Packing, one: &[u8], other: &[u8]) -> bool {
    beginning(packing, one) == beginning(packing, other)
}

#[test]
fn a_block_has_the_checksum_that_the_server_gives_it() {
    // What the server made of nine lines.
    let packed = bytes(
        "KDSVRIB+MJY7Go2M7XyRyII5AAAAYwAAALV0aGUgc2FtZSAwCgsAFjELABYyCwAWMwsAFjQLABY1CwAWNgsAEzcLAFBtZSA4Cg==",
    );
    assert_eq!(unpack(OF_BLOCKS, &packed), Ok(true));
    assert_eq!(unpack(OF_BLOCKS, &packed.repeat(3)), Ok(true));
    let flaw = |is_cut| Err(whole::Flaw { of: None, is_cut });
    for at in 0..packed.len() {
        let cut = if at == 0 { Ok(true) } else { flaw(true) };
        assert_eq!(unpack(OF_BLOCKS, &packed[..at]), cut, "{at}");
        let mut damaged = packed.clone();
        damaged[at] ^= 1;
        assert!(unpack(OF_BLOCKS, &damaged).is_err(), "{at}");
    }
    let both = Packing { blocks: true, ..of("gzip") };
    assert_eq!(unpack(both, &gzip(&packed)), Ok(true));
    assert_eq!(unpack(both, &gzip(&packed[1..])), flaw(false));
    let cut = whole::Flaw { of: both.coding, is_cut: true };
    assert_eq!(unpack(both, &gzip(&packed)[..40]), Err(cut));
}

#[test]
fn of_a_block_no_more_is_read_than_it_announces() {
    let block = |method: u8, packed: &[u8], unpacked: u32| {
        let size = u32::try_from(packed.len() + 9).unwrap().to_le_bytes();
        let unpacked = unpacked.to_le_bytes();
        [&[0; blocks::CHECKSUM][..], &[method], &size, &unpacked, packed].concat()
    };
    for (method, packed) in [(0x02, &b"\n1"[..]), (0x82, b"\x20\n1")] {
        let read = beginning(OF_BLOCKS, &block(method, packed, 2));
        assert_eq!(read, Decoded { bytes: b"\n1".to_vec(), is_all: true });
        // A server goes on with the next block.
        let both = [block(method, packed, 1), block(0x02, b"PARALLEL WITH", 13)].concat();
        let read = beginning(OF_BLOCKS, &both);
        assert_eq!(read, Decoded { bytes: b"\n".to_vec(), is_all: false });
    }
}

#[test]
fn what_becomes_too_long_is_looked_at_no_further() {
    let zeros = gzip(&vec![0; 65 << 20]);
    assert_eq!(unpack(of("gzip"), &zeros), Ok(false));
    let damaged = [&zeros[..zeros.len() - 9], b"rubbish"].concat();
    assert_eq!(unpack(of("gzip"), &damaged), Ok(false));
    // A block of 9 MiB, and one of a codec that is not read.
    let block = |method: u8, unpacked: u32| {
        let mut checked = vec![method, 12, 0, 0, 0];
        checked.extend_from_slice(&unpacked.to_le_bytes());
        checked.extend_from_slice(b"abc");
        [&testing::checksum(&checked)[..], &checked].concat()
    };
    assert_eq!(unpack(OF_BLOCKS, &block(0x82, 9 << 20)), Ok(false));
    assert_eq!(unpack(OF_BLOCKS, &block(0x92, 3)), Ok(false));
    assert!(unpack(OF_BLOCKS, &block(0x12, 3)).is_err());
    // Frames that are passed over, and windows that are too large.
    assert_eq!(unpack(of("zstd"), b"\x50\x2a\x4d\x18\0\0\0\0"), Ok(false));
    assert_eq!(unpack(of("zstd"), b"\x28\xb5\x2f\xfd\0\x70\x01\0\0"), Ok(false));
    assert_eq!(unpack(of("br"), b"\x0f"), Ok(false));
}

#[test]
fn of_a_long_text_the_beginning_is_read() {
    let long = long();
    let check = |packing: Packing, packed: &[u8]| {
        let read = beginning(packing, packed);
        assert_eq!((read.bytes.len(), read.is_all), (MOST, false), "{packing:?}");
        assert!(long.as_bytes().starts_with(&read.bytes), "{packing:?}");
        let half = beginning(packing, &packed[..packed.len() / 2]);
        assert!(long.as_bytes().starts_with(&half.bytes), "{packing:?}");
        half.bytes.len()
    };
    for (name, text) in LONGS {
        check(of(name), &bytes(text));
    }
    assert_eq!(check(of("gzip"), &gzip(long.as_bytes())), MOST);
    let mut block = [&[0; blocks::CHECKSUM][..], &[2]].concat();
    let size = u32::try_from(long.len()).unwrap();
    block.extend_from_slice(&(size + 9).to_le_bytes());
    block.extend_from_slice(&size.to_le_bytes());
    block.extend_from_slice(long.as_bytes());
    check(OF_BLOCKS, &block);
    let both = Packing { blocks: true, ..of("gzip") };
    let read = beginning(both, &gzip(&bytes(BLOCKS)));
    assert_eq!((read.bytes.as_slice(), read.is_all), (TEXT.as_bytes(), true));
}

#[test]
fn what_becomes_huge_is_read_no_further_than_wanted() {
    let bomb = gzip(&vec![0; 256 << 20]);
    assert_eq!(beginning(of("gzip"), &bomb), Decoded { bytes: vec![0; MOST], is_all: false });
    // Repeats of one byte: 4,000 blocks of zstd that say so, and 200 million lengths of one in a block of lz4.
    let mut zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8];
    for _ in 0..4_000 {
        zstd.extend_from_slice(&[0x02, 0, 0x10, 0]);
    }
    assert_eq!(beginning(of("zstd"), &zstd), Decoded { bytes: vec![0; MOST], is_all: false });
    let mut lz4 = vec![0x1f, 0, 1, 0];
    lz4.resize(1 << 20, 0xff);
    lz4.extend_from_slice(&[0, 0]);
    let mut out = Vec::new();
    assert_eq!(lz4::block(&lz4, 0, &mut out, MOST), lz4::End::Cut);
    assert_eq!(out, vec![0; MOST]);
    // A block that announces 4 GiB.
    let mut block = vec![0; blocks::CHECKSUM];
    block.extend_from_slice(&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(beginning(OF_BLOCKS, &block), Decoded::default());
    block.extend_from_slice(&[0x10, b'x']);
    assert_eq!(beginning(OF_BLOCKS, &block), Decoded { bytes: b"x".to_vec(), is_all: false });
}

#[test]
fn a_window_of_more_than_eight_mebibytes_is_not_read() {
    let mut packed = bytes(TEXTS[2].1);
    assert!(beginning(of("br"), &packed).is_all);
    packed[0] |= 0xf;
    assert_eq!(beginning(of("br"), &packed), Decoded::default());
}

#[test]
fn an_encoding_has_the_servers_name() {
    for (name, coding) in Coding::ALL {
        assert_eq!((Coding::of(name), coding.name()), (Some(coding), name));
        assert_eq!(serde_json::to_value(coding).unwrap(), name);
    }
    assert!(
        ["", "identity", "GZIP", "snappy", "gzip, br"].iter().all(|it| Coding::of(it).is_none())
    );
}
