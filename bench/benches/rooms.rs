//! `cargo bench`: the time of what `corral-guard` counts.

use corral_rooms::ROOMS;
use divan::Bencher;

fn main() {
    divan::main();
}

#[divan::bench(args = ROOMS.iter().map(|room| room.name))]
fn room(bencher: Bencher, name: &str) {
    let room = ROOMS.iter().find(|room| room.name == name).expect("a name of the list");
    bencher.bench_local((room.prepare)());
}
