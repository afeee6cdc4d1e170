//! `beamline-vsock-probe serve PORT`, `beamline-vsock-probe call CID PORT BYTES`: a stream over vsock. The server
//! gives one caller back what it hears; the caller sends bytes of which no two blocks are alike and compares.
//!
//! Prints a line of `name=value` once it listens, and one at the end. Fails where a byte is lost or changed.

use std::error::Error;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// Bytes at once.
const BLOCK: usize = 8192;
/// How often the caller looks for a server that is not there yet, and how long it waits in between.
const TRIES: usize = 200;
const PAUSE: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    beamline_guest_linux::report("vsock", probe())
}

fn probe() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", port] => serve(port.parse()?),
        ["call", cid, port, bytes] => call(cid.parse()?, port.parse()?, bytes.parse()?),
        _ => Err("usage: beamline-vsock-probe serve PORT | call CID PORT BYTES".into()),
    }
}

fn serve(port: u32) -> Result<(), Box<dyn Error>> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
    println!("vsock: listens=true port={port}");
    let (mut stream, caller) = listener.accept()?;
    let (mut block, mut total) = ([0; BLOCK], 0);
    loop {
        let len = stream.read(&mut block)?;
        if len == 0 {
            break;
        }
        stream.write_all(&block[..len])?;
        total += len;
    }
    println!("vsock: served={total} cid={}", caller.cid());
    Ok(())
}

fn call(cid: u32, port: u32, bytes: u64) -> Result<(), Box<dyn Error>> {
    let mut stream = connect(cid, port)?;
    let mut sender = stream.try_clone()?;
    let sent = std::thread::spawn(move || -> std::io::Result<()> {
        for (number, len) in blocks(bytes) {
            sender.write_all(&block(number)[..len])?;
        }
        sender.shutdown(Shutdown::Write)
    });
    let begin = Instant::now();
    let mut heard = [0; BLOCK];
    for (number, len) in blocks(bytes) {
        stream.read_exact(&mut heard[..len])?;
        if heard[..len] != block(number)[..len] {
            return Err(format!("block {number} came back changed").into());
        }
    }
    if stream.read(&mut heard)? != 0 {
        return Err("more came back than was sent".into());
    }
    sent.join().map_err(|_| "the sender panicked")??;
    println!("vsock: called={bytes} cid={cid} took_ms={}", begin.elapsed().as_millis());
    Ok(())
}

/// A server may still be on its way up.
fn connect(cid: u32, port: u32) -> Result<VsockStream, Box<dyn Error>> {
    let mut tries = 0;
    loop {
        match VsockStream::connect_with_cid_port(cid, port) {
            Ok(stream) => return Ok(stream),
            Err(error) if tries == TRIES => return Err(error.into()),
            Err(_) => tries += 1,
        }
        std::thread::sleep(PAUSE);
    }
}

/// Number and length of each block.
fn blocks(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    let block = BLOCK as u64;
    (0..bytes.div_ceil(block)).map(move |n| (n, (bytes - n * block).min(block) as usize))
}

/// A block's bytes: its number, mixed with each place.
fn block(number: u64) -> [u8; BLOCK] {
    std::array::from_fn(|at| {
        let mixed = (number * BLOCK as u64 + at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 56) as u8
    })
}
