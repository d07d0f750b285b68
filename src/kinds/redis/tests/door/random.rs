//! Random pipelines, cut at random places: through the door they are answered byte for byte as by a server that nothing
//! is in front of.

use super::*;

/// What is asked. `a`, `b`, `c` are keys, `V` is a value, `N` a small number.
const COMMANDS: [&str; 81] = [
    "GET a",
    "get b",
    "GETRANGE a 0 N",
    "STRLEN a",
    "EXISTS a b c",
    "TYPE a",
    "MGET a b c",
    "SET a V",
    "SET b V",
    "set c V",
    "SET a N",
    "SET a V NX",
    "SET a V XX",
    "SET a V GET",
    "SETEX a 1000 V",
    "SET a V KEEPTTL",
    "SETNX b V",
    "GETSET a V",
    "GETDEL c",
    "MSET a V b V",
    "MSETNX a V c V",
    "APPEND a V",
    "SETRANGE a N V",
    "INCR a",
    "INCRBY a N",
    "DECR b",
    "INCRBYFLOAT a 1.5",
    "DEL a",
    "DEL a b",
    "UNLINK c",
    "PERSIST a",
    "EXPIRE a 1000",
    "EXPIRE a 1000 NX",
    "EXPIRE b 2000 XX",
    "EXPIRE b -1",
    "HSET a f N",
    "HSET a g N f N",
    "HGET a f",
    "HMGET a f g h",
    "HGETALL a",
    "HDEL a f",
    "HINCRBY a n N",
    "HLEN a",
    "HEXISTS a f",
    "RPUSH b V V",
    "LPUSH b V",
    "LRANGE b 0 -1",
    "LPOP b",
    "RPOP b N",
    "LLEN b",
    "LINDEX b N",
    "LSET b 0 V",
    "LMOVE b c LEFT RIGHT",
    "LREM b 0 V",
    "SADD c N",
    "SREM c N",
    "SISMEMBER c N",
    "SCARD c",
    "ZADD a N V",
    "ZSCORE a V",
    "ZRANGE a 0 -1 WITHSCORES",
    "ZINCRBY a N V",
    "RENAME a b",
    "COPY a c REPLACE",
    "BITCOUNT a",
    "SETBIT a N 1",
    "GETBIT a N",
    "PFADD c V",
    "PFCOUNT c",
    "SORT b ALPHA",
    "OBJECT ENCODING a",
    "ECHO V",
    "PING",
    "ping V",
    "GET",
    "SET a",
    "NOSUCH a b",
    "OBJECT NOSUCH a",
    "EVAL return{KEYS[1],ARGV[1]} 1 a V",
    "BLPOP b 0.01",
    "XADD a N-1 f V",
];
/// What belongs to transactions and databases.
const BLOCKS: [&str; 8] =
    ["MULTI", "EXEC", "DISCARD", "WATCH a", "UNWATCH", "SELECT 0", "SELECT 3", "SELECT 99"];
/// What a client says of its connection, which the door takes for itself: not within MULTI.
const CONNECTION: [&str; 3] = ["CLIENT REPLY SKIP", "CLIENT GETNAME", "CLIENT SETNAME V"];

/// A command in one of the forms that a server takes.
fn encoded(random: &mut fastrand::Rng, others: &[&str]) -> Vec<u8> {
    let from = if random.u8(0..6) == 0 { others } else { &COMMANDS };
    let words = random.choice(from).unwrap().split(' ').map(|word| match word {
        "V" => match random.u8(0..8) {
            0 => String::new(),
            1 => "long".repeat(random.usize(1..5_000)),
            2 => "\r\n$3\r\n".to_owned(),
            _ => format!("v{}", random.u8(..)),
        },
        "N" => random.u8(0..5).to_string(),
        "N-1" => format!("{}-1", random.u8(0..5)),
        word => word.to_owned(),
    });
    let words: Vec<String> = words.collect();
    let is_plain =
        |word: &String| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic());
    if random.u8(0..6) == 0
        && words.iter().map(String::len).sum::<usize>() < 1_000
        && words.iter().all(is_plain)
    {
        return (words.join(" ") + if random.bool() { "\r\n" } else { "\n" }).into_bytes();
    }
    resp::command(&words).to_vec()
}

/// Everything that is answered up to the end, frame by frame.
async fn answers<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Wire<S>,
    pieces: &[&[u8]],
) -> Vec<Bytes> {
    for piece in pieces {
        client.send(piece).await;
        tokio::task::yield_now().await;
    }
    let mut answers = Vec::new();
    while answers.last().is_none_or(|last| last != "$3\r\nend\r\n") {
        let reply = client.reply().await;
        assert_ne!(reply, "", "the connection has ended after {answers:?}");
        answers.push(reply);
    }
    answers
}

#[tokio::test]
async fn random_pipelines_are_answered_byte_for_byte_as_by_the_server_itself() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("FUSEBOX_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("repeat with FUSEBOX_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (world, alone) = (World::open().await, Server::start().await);
    for round in 0..number("FUSEBOX_TEST_PIPELINES").unwrap_or(150) {
        let direct = tokio::net::TcpStream::connect(("127.0.0.1", alone.port)).await.unwrap();
        direct.set_nodelay(true).unwrap();
        let (mut through, mut direct) = (world.client(), Wire::of(direct));
        if random.bool() {
            let hello = "HELLO 3";
            assert!(
                through.ask(hello).await.starts_with('%')
                    && direct.ask(hello).await.starts_with('%')
            );
        }
        let others = if random.bool() { &BLOCKS[..] } else { &CONNECTION };
        let commands: Vec<Vec<u8>> =
            (0..random.usize(1..60)).map(|_| encoded(&mut random, others)).collect();
        let mut stream = commands.concat();
        // What was begun is ended, and the last reply is one that nothing skips.
        for end in [&["DISCARD"][..], &["CLIENT", "REPLY", "ON"], &["ECHO", "end"]] {
            stream.extend_from_slice(&resp::command(end));
        }
        let mut pieces = Vec::new();
        let mut rest = stream.as_slice();
        while !rest.is_empty() {
            let largest = if random.u8(0..3) == 0 { 16 } else { 4_000 };
            let (piece, later) = rest.split_at(random.usize(1..=largest).min(rest.len()));
            pieces.push(piece);
            rest = later;
        }
        let expected = answers(&mut direct, &pieces).await;
        let told = answers(&mut through, &pieces).await;
        if told != expected {
            let at = told.iter().zip(&expected).position(|(told, expected)| told != expected);
            let commands: Vec<_> =
                commands.iter().map(|command| String::from_utf8_lossy(command)).collect();
            panic!(
                "round {round}: reply {at:?} of {} and {} differs: {:?} instead of {:?}\n{commands:#?}",
                told.len(),
                expected.len(),
                at.map(|at| &told[at]),
                at.map(|at| &expected[at]),
            );
        }
    }
}
