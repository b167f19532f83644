"""From an AnnData to ragged batches of cells and of populations."""

from scgde.data.cells import CellTable, cell_table
from scgde.data.datamodule import PopulationDataModule
from scgde.data.populations import PopulationField
from scgde.data.sampler import PopulationSampler, SetBatch

__all__ = ["CellTable", "PopulationDataModule", "PopulationField", "PopulationSampler", "SetBatch", "cell_table"]
