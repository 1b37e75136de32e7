//! An allocator that counts what marked threads ask of it.
//!
//! Always holds: it hands out exactly what the system's allocator hands out; it counts only on threads that
//! have called [`mark_thread`], and only while armed. It keeps where the first few allocations came from.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

const TRACES_MAX: usize = 4;

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
static TRACES: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    static MARKED: Cell<bool> = const { Cell::new(false) };
}

/// See the module documentation.
pub(crate) struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// From now on the calling thread's allocations count.
pub(crate) fn mark_thread() {
    MARKED.set(true);
}

/// Counts during `work`: how many allocations there were, and where the first came from.
pub(crate) fn count(work: impl FnOnce()) -> (u64, Vec<String>) {
    COUNT.store(0, Ordering::SeqCst);
    ARMED.store(true, Ordering::SeqCst);
    work();
    ARMED.store(false, Ordering::SeqCst);
    let traces = std::mem::take(&mut *TRACES.lock().unwrap_or_else(PoisonError::into_inner));
    (COUNT.load(Ordering::SeqCst), traces)
}

fn note(size: usize) {
    // A thread that ends has no marks any more; nor does it serve requests.
    if !MARKED.try_with(Cell::get).unwrap_or(false) || !ARMED.load(Ordering::Relaxed) {
        return;
    }
    COUNT.fetch_add(1, Ordering::SeqCst);
    MARKED.set(false); // what follows allocates
    let mut traces = TRACES.lock().unwrap_or_else(PoisonError::into_inner);
    if traces.len() < TRACES_MAX {
        traces.push(format!("{size} bytes\n{}", Backtrace::force_capture()));
    }
    drop(traces);
    MARKED.set(true);
}

#[expect(unsafe_code, reason = "a global allocator; see the manifest")]
// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps `alloc_zeroed`'s contract, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller keeps `realloc`'s contract; all memory comes from the system's allocator.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract; all memory comes from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}
