//! One second's readings as protobuf.

use prost::Message;

use crate::report as checked;

#[derive(Clone, PartialEq, Message)]
pub struct NodeSample {
    #[prost(double, optional, tag = "1")]
    pub cpu: Option<f64>,
    #[prost(double, optional, tag = "2")]
    pub io_wait: Option<f64>,
    #[prost(uint64, optional, tag = "3")]
    pub memory_used_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub disk_read_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub disk_written_bytes: Option<u64>,
    #[prost(double, optional, tag = "6")]
    pub pressure_cpu: Option<f64>,
    #[prost(double, optional, tag = "7")]
    pub pressure_memory: Option<f64>,
    #[prost(double, optional, tag = "8")]
    pub pressure_io: Option<f64>,
    #[prost(message, repeated, tag = "9")]
    pub gpus: Vec<GpuSample>,
    #[prost(message, repeated, tag = "10")]
    pub absent: Vec<Absent>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Absent {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub reason: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct GpuSample {
    #[prost(string, tag = "1")]
    pub uuid: String,
    #[prost(uint64, optional, tag = "2")]
    pub memory_used_bytes: Option<u64>,
    #[prost(double, optional, tag = "3")]
    pub busy: Option<f64>,
    #[prost(double, optional, tag = "4")]
    pub sm: Option<f64>,
    #[prost(double, optional, tag = "5")]
    pub tensor: Option<f64>,
    #[prost(double, optional, tag = "6")]
    pub fp16: Option<f64>,
    #[prost(double, optional, tag = "7")]
    pub dram_bandwidth: Option<f64>,
    #[prost(uint32, optional, tag = "8")]
    pub power_milliwatts: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    pub temperature_celsius: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReplicaSample {
    #[prost(double, optional, tag = "1")]
    pub cpu_cores: Option<f64>,
    #[prost(double, optional, tag = "2")]
    pub throttled: Option<f64>,
    #[prost(uint64, optional, tag = "3")]
    pub memory_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub memory_limit_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub io_read_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub io_written_bytes: Option<u64>,
    #[prost(uint32, optional, tag = "7")]
    pub pids: Option<u32>,
    #[prost(double, optional, tag = "8")]
    pub pressure_cpu: Option<f64>,
    #[prost(double, optional, tag = "9")]
    pub pressure_memory: Option<f64>,
    #[prost(double, optional, tag = "10")]
    pub pressure_io: Option<f64>,
    #[prost(message, repeated, tag = "11")]
    pub absent: Vec<Absent>,
}

fn absent_out(absent: &[(String, String)]) -> Vec<Absent> {
    let one = |(name, reason): &(String, String)| Absent {
        name: name.clone(),
        reason: reason.clone(),
    };
    absent.iter().map(one).collect()
}

fn absent_in(absent: Vec<Absent>) -> Vec<(String, String)> {
    absent.into_iter().map(|a| (a.name, a.reason)).collect()
}

impl From<&checked::NodeSample> for NodeSample {
    fn from(sample: &checked::NodeSample) -> Self {
        Self {
            cpu: sample.cpu,
            io_wait: sample.io_wait,
            memory_used_bytes: sample.memory_used_bytes,
            disk_read_bytes: sample.disk_read_bytes,
            disk_written_bytes: sample.disk_written_bytes,
            pressure_cpu: sample.pressure_cpu,
            pressure_memory: sample.pressure_memory,
            pressure_io: sample.pressure_io,
            gpus: sample.gpus.iter().map(GpuSample::from).collect(),
            absent: absent_out(&sample.absent),
        }
    }
}

impl From<NodeSample> for checked::NodeSample {
    fn from(sample: NodeSample) -> Self {
        Self {
            cpu: sample.cpu,
            io_wait: sample.io_wait,
            memory_used_bytes: sample.memory_used_bytes,
            disk_read_bytes: sample.disk_read_bytes,
            disk_written_bytes: sample.disk_written_bytes,
            pressure_cpu: sample.pressure_cpu,
            pressure_memory: sample.pressure_memory,
            pressure_io: sample.pressure_io,
            gpus: sample.gpus.into_iter().map(Into::into).collect(),
            absent: absent_in(sample.absent),
        }
    }
}

impl From<&checked::GpuSample> for GpuSample {
    fn from(gpu: &checked::GpuSample) -> Self {
        Self {
            uuid: gpu.uuid.clone(),
            memory_used_bytes: gpu.memory_used_bytes,
            busy: gpu.busy,
            sm: gpu.sm,
            tensor: gpu.tensor,
            fp16: gpu.fp16,
            dram_bandwidth: gpu.dram_bandwidth,
            power_milliwatts: gpu.power_milliwatts,
            temperature_celsius: gpu.temperature_celsius,
        }
    }
}

impl From<GpuSample> for checked::GpuSample {
    fn from(gpu: GpuSample) -> Self {
        Self {
            uuid: gpu.uuid,
            memory_used_bytes: gpu.memory_used_bytes,
            busy: gpu.busy,
            sm: gpu.sm,
            tensor: gpu.tensor,
            fp16: gpu.fp16,
            dram_bandwidth: gpu.dram_bandwidth,
            power_milliwatts: gpu.power_milliwatts,
            temperature_celsius: gpu.temperature_celsius,
        }
    }
}

impl From<&checked::ReplicaSample> for ReplicaSample {
    fn from(sample: &checked::ReplicaSample) -> Self {
        Self {
            cpu_cores: sample.cpu_cores,
            throttled: sample.throttled,
            memory_bytes: sample.memory_bytes,
            memory_limit_bytes: sample.memory_limit_bytes,
            io_read_bytes: sample.io_read_bytes,
            io_written_bytes: sample.io_written_bytes,
            pids: sample.pids,
            pressure_cpu: sample.pressure_cpu,
            pressure_memory: sample.pressure_memory,
            pressure_io: sample.pressure_io,
            absent: absent_out(&sample.absent),
        }
    }
}

impl From<ReplicaSample> for checked::ReplicaSample {
    fn from(sample: ReplicaSample) -> Self {
        Self {
            cpu_cores: sample.cpu_cores,
            throttled: sample.throttled,
            memory_bytes: sample.memory_bytes,
            memory_limit_bytes: sample.memory_limit_bytes,
            io_read_bytes: sample.io_read_bytes,
            io_written_bytes: sample.io_written_bytes,
            pids: sample.pids,
            pressure_cpu: sample.pressure_cpu,
            pressure_memory: sample.pressure_memory,
            pressure_io: sample.pressure_io,
            absent: absent_in(sample.absent),
        }
    }
}
