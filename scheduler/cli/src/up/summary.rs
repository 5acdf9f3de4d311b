//! What a person reads when it is up.

use serde::Serialize;

use super::CONTEXT;
use super::layout::Layout;
use super::state::Record;
use crate::output::Output;

#[derive(Serialize)]
struct Summary<'a> {
    server: &'a str,
    gateway: &'a str,
    node: &'a str,
    context: &'a str,
    data: &'a std::path::Path,
    run_dir: &'a std::path::Path,
    processes: &'a std::collections::BTreeMap<String, super::processes::Process>,
}

pub(super) fn show(layout: &Layout, record: &Record, output: &Output) -> anyhow::Result<()> {
    if output.is_json() {
        return output.json(&Summary {
            server: &record.server,
            gateway: &record.gateway,
            node: &record.node,
            context: CONTEXT,
            data: &layout.data,
            run_dir: &record.run_dir,
            processes: &record.processes,
        });
    }
    output.line(text(layout, record))
}

fn text(layout: &Layout, record: &Record) -> String {
    format!(
        "stokehold is up\n  \
         server   {}\n  \
         gateway  {}\n  \
         node     {}\n  \
         context  {CONTEXT}\n  \
         data     {}\n\
         next:\n  \
         stokehold image import runtime-mlflow.oci.tar\n  \
         stokehold model push ./iris --name iris --alias prod\n  \
         stokehold deploy iris --model iris@prod\n  \
         stokehold query iris --data @rows.json",
        record.server,
        record.gateway,
        record.node,
        layout.data.display()
    )
}
