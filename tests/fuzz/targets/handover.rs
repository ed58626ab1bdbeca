//! Any bytes from another process: a message that reads the same when written again, or a fault with a sentence.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::config::{Config, file, limits};
use ringway::control::totals::Totals;
use ringway::policy::snapshot::Snapshot;
use ringway::session::parcel::Parcel;
use ringway::wire::handover::{Fault, HEAD_BYTES, Head, Message};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

// The bytes as they are; and behind a good head, for that is hard to guess.
fuzz_target!(|bytes: &[u8]| {
    check(read(bytes));
    let mut headed = b"RWHO\x01\0\0\0".to_vec();
    let Some((raw_bytes, body)) = bytes.split_first() else { return };
    let raw_bytes = usize::from(*raw_bytes).min(body.len());
    for part in [body.len() - raw_bytes, raw_bytes] {
        headed.extend_from_slice(&u32::try_from(part).unwrap_or(0).to_le_bytes());
    }
    headed.extend_from_slice(body);
    check(read(&headed));
});

fn read(bytes: &[u8]) -> Result<Message, Fault> {
    let (head, body) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(Fault::Foreign)?;
    let head = Head::decode(head)?;
    assert!(head.body_bytes() as u64 <= limits::HANDOVER_BYTES_MAX);
    Message::decode(head, body)
}

fn check(read_first: Result<Message, Fault>) {
    let message = match read_first {
        Ok(message) => message,
        Err(fault) => return assert!(!fault.to_string().is_empty()),
    };
    let written = message.encode().expect("it was no longer when it was read");
    assert_eq!(read(&written).as_ref(), Ok(&message), "it reads as it was written");
    match message {
        Message::Sessions(sessions) => sessions.into_iter().take(4).for_each(|record| {
            let ends = [UnixStream::pair(), UnixStream::pair()].map(|pair| pair.unwrap().0.into());
            match Parcel::of_record(record.clone(), ends, snapshot()) {
                Ok(parcel) => {
                    let mut told = parcel.record().expect("no longer than it was");
                    told.snapshot = record.snapshot;
                    assert_eq!(told, record);
                    parcel.release();
                }
                Err(why) => assert!(!why.is_empty()),
            }
        }),
        Message::Totals(totals) => {
            let totals = Totals::of_record(*totals);
            let (record, closed) = (totals.record(), totals.closed());
            assert_eq!(record.shards.len(), closed.shards.len());
        }
        Message::Snapshot { text, .. } => drop(file::parse_carried(&text)),
        _ => {}
    }
}

fn snapshot() -> Arc<Snapshot> {
    static SNAPSHOT: OnceLock<Arc<Snapshot>> = OnceLock::new();
    let made = SNAPSHOT.get_or_init(|| {
        let config: Config = file::parse(
            "[listeners.l]\nbind = \"127.0.0.1:0\"\nstable = \"p\"\n[pools.p]\nbackends = [\"127.0.0.1:1\"]",
        )
        .expect("a good config");
        Arc::new(Snapshot::new(config, None))
    });
    Arc::clone(made)
}
