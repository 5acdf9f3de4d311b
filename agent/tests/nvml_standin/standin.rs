//! A stand-in for libnvidia-ml.so at the C ABI, for `tests/nvml.rs`, which compiles it once for each
//! scenario (the environment variable `SCENARIO` at compile time). It says nothing about what a real
//! driver answers.

#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const SUCCESS: c_int = 0;
const NOT_SUPPORTED: c_int = 3;
const GPU_IS_LOST: c_int = 15;

const SCENARIO: &str = match option_env!("SCENARIO") {
    Some(scenario) => scenario,
    None => "hopper",
};

type Device = *mut c_void;

#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[repr(C)]
pub struct GpmSupport {
    version: c_uint,
    supported: c_uint,
}

#[repr(C)]
pub struct GpmMetric {
    id: c_uint,
    result: c_int,
    value: f64,
    names: [*mut c_char; 3],
}

#[repr(C)]
pub struct GpmRequest {
    version: c_uint,
    count: c_uint,
    samples: [*mut c_void; 2],
    metrics: [GpmMetric; 210],
}

fn index(device: Device) -> usize {
    device as usize - 1
}

unsafe fn text(into: *mut c_char, len: c_uint, text: &str) {
    let bytes = text.bytes().chain([0]).take(len as usize);
    for (i, byte) in bytes.enumerate() {
        unsafe { *into.add(i) = byte as c_char };
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(_: c_int) -> *const c_char {
    c"scripted".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(into: *mut c_char, len: c_uint) -> c_int {
    unsafe { text(into, len, "570.00") };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    // A GPU that falls off the bus: the second reading hangs for a while.
    if SCENARIO == "hang" && CALLS.fetch_add(1, Ordering::SeqCst) == 1 {
        std::thread::sleep(Duration::from_secs(2));
    }
    unsafe { *count = if SCENARIO == "none" { 0 } else { 2 } };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(i: c_uint, device: *mut Device) -> c_int {
    if SCENARIO == "lost" && i == 1 {
        return GPU_IS_LOST;
    }
    unsafe { *device = (i as usize + 1) as Device };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(_: Device, into: *mut c_char, len: c_uint) -> c_int {
    unsafe { text(into, len, "Stand-in GPU") };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: Device, into: *mut c_char, len: c_uint) -> c_int {
    unsafe { text(into, len, &format!("GPU-{}", index(device))) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(_: Device, memory: *mut Memory) -> c_int {
    unsafe {
        (*memory).total = 80 << 30;
        (*memory).used = 3 << 30;
        (*memory).free = 77 << 30;
        (*memory).reserved = 0;
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: Device,
    rates: *mut Utilization,
) -> c_int {
    if index(device) == 1 {
        return NOT_SUPPORTED;
    }
    unsafe { *rates = Utilization { gpu: 75, memory: 10 } };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(_: Device, milliwatts: *mut c_uint) -> c_int {
    unsafe { *milliwatts = 321_000 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(_: Device, _: c_int, celsius: *mut c_uint) -> c_int {
    unsafe { *celsius = 55 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmQueryDeviceSupport(device: Device, support: *mut GpmSupport) -> c_int {
    unsafe { (*support).supported = (index(device) == 0).into() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleAlloc(sample: *mut *mut c_void) -> c_int {
    unsafe { *sample = Box::into_raw(Box::new(0u64)).cast() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleFree(sample: *mut c_void) -> c_int {
    drop(unsafe { Box::from_raw(sample.cast::<u64>()) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleGet(_: Device, _: *mut c_void) -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmMetricsGet(request: *mut GpmRequest) -> c_int {
    let request = unsafe { &mut *request };
    for metric in request.metrics.iter_mut().take(request.count as usize) {
        metric.result = SUCCESS;
        metric.value = match metric.id {
            2 => 62.5,
            5 => 25.0,
            10 => 40.0,
            // Half precision cannot be had: each figure fails by itself.
            _ => {
                metric.result = NOT_SUPPORTED;
                0.0
            }
        };
    }
    SUCCESS
}
