//! A decoder that has seen an image takes no memory for the next ones.

#![allow(unsafe_code)] // Counts what the allocator is asked for.
#![allow(clippy::unwrap_used)] // All of it is test code.

mod jpeg_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use data_sharding::jpeg::{ImageDecoder, Region, Way, seek};
use jpeg_support::{Coding, PLAIN, encode, picture};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn decoding_takes_no_memory_once_the_buffers_are_large_enough() {
    let coding = Coding { optimize: true, ..PLAIN };
    let jpegs: Vec<Vec<u8>> =
        (0..6).map(|seed| encode(&picture(3, 200, 150, seed), 3, 200, 150, coding)).collect();
    let records: Vec<Vec<u8>> = jpegs.iter().map(|jpeg| seek::build(jpeg).unwrap().unwrap()).collect();
    let progressive = encode(&picture(3, 200, 150, 9), 3, 200, 150, Coding { progressive: true, ..PLAIN });
    let mut decoder = ImageDecoder::new().unwrap();
    let mut rgb = Vec::new();
    let mut decode = |jpeg: &[u8], region: Region, record: Option<&[u8]>, way: Way| {
        let decoded = decoder.decode(jpeg, region, Some((100, 100)), record, &mut rgb).unwrap();
        assert_eq!(decoded.way, way);
    };
    for jpeg in jpegs.iter().chain([&progressive]) {
        let record = seek::build(jpeg).unwrap();
        let way = if record.is_some() { Way::Indexed } else { Way::Cropped };
        decode(jpeg, Region::whole(200, 150), record.as_deref(), way);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for (jpeg, record) in jpegs.iter().zip(&records) {
        for left in 0..20 {
            let region = Region { left, top: left / 2, width: 130, height: 120 };
            decode(jpeg, region, Some(record), Way::Indexed);
            decode(jpeg, region, None, Way::Sequential);
            decode(&progressive, region, None, Way::Cropped);
        }
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
