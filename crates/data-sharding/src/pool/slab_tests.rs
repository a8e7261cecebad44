//! The slab under real threads.

use super::slab::Slab;

#[test]
fn parts_filled_by_threads_come_back_as_one_slab() {
    let mut slab = Slab::new(7, 3).unwrap();
    for round in 0..50_u8 {
        let mut joined: Vec<Slab> = std::thread::scope(|scope| {
            let threads: Vec<_> = slab
                .split(7, 2, 3)
                .map(|mut part| {
                    scope.spawn(move || {
                        for (index, slot) in part.slots().zip(part.slots_mut()) {
                            slot.pixels.fill(round + index as u8);
                            *slot.label = index as i64;
                            slot.device.erase[0] = index as i32;
                        }
                        part.join()
                    })
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(joined.len(), 1);
        slab = joined.remove(0);
        let expected: Vec<u8> = (0..7).flat_map(|slot| [round + slot; 3]).collect();
        assert_eq!(slab.pixels(21), expected);
        assert_eq!(slab.labels(7), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(slab.device(7).iter().map(|d| d.erase[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!((slab.pixels(6).len(), slab.labels(2).len()), (6, 2));
    }
}

#[test]
fn parts_cover_the_asked_slots_once() {
    for (len, part) in [(1, 1), (6, 2), (7, 3), (7, 9)] {
        let slots: Vec<usize> =
            Slab::new(9, 1).unwrap().split(len, part, 1).flat_map(|part| part.slots()).collect();
        assert_eq!(slots, (0..len).collect::<Vec<_>>());
    }
}

#[test]
fn impossible_sizes_are_an_error() {
    assert!(Slab::new(usize::MAX, 3072).is_err());
}
