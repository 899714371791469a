use crate::args::InspectArgs;
use crate::error::Result;
pub fn run(_args: &InspectArgs) -> Result<()> {
    Ok(())
}
