"""The public data sets that :func:`scgde.datasets.load` knows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """One file: what it holds, where its data come from, and how to recognise it."""

    name: str
    description: str
    n_cells: int
    n_genes: int
    kind: str
    population_key: str
    paper: str
    licence: str
    # Public repository, path and commit of the data that the file was made from.
    repository: str
    path: str
    commit: str
    sha256: str
    n_bytes: int

    @property
    def file_name(self) -> str:
        return f"{self.name}.h5ad"

    @property
    def source(self) -> str:
        return f"{self.path} of repository {self.repository} at commit {self.commit}"


_DATASETS = (
    Dataset(
        name="papalexi_eccite_299g",
        description="CRISPR knock-outs in THP-1 cells (ECCITE-seq): 25 genes and non-targeting, 299 genes",
        n_cells=16_192,
        n_genes=299,
        kind="counts",
        population_key="target",
        paper="Papalexi et al. 2021, Nat Genet",
        licence="MIT",
        repository="Katsevich-Lab/sceptredata",
        path="data/lowmoi_example_data.rda",
        commit="ec722d5df90dfd34ace6cc9a5745ab6a5c2a6731",
        sha256="00ac87084759e726bc538ea459b21fddce81435c63e2842b9e087e0224abd17f",
        n_bytes=2_160_203,
    ),
    Dataset(
        name="tapseq_k562_chr8",
        description="CRISPR interference in K562 cells (TAP-seq): 14 targets and non-targeting, 72 genes",
        n_cells=19_098,
        n_genes=72,
        kind="counts",
        population_key="target",
        paper="Schraivogel et al. 2020, Nat Methods",
        licence="MIT",
        repository="velten-group/crispat",
        path="example_data/Schraivogel/gene_expression_counts.csv",
        commit="a9372b9cf9b82b7409cc3be4d192056ae57a2673",
        sha256="beb559a2adf0654135858d2c84139cbca19dbfd864cfc930cf2bdf377565248d",
        n_bytes=2_093_141,
    ),
    Dataset(
        name="cropseq_mcf10a_targets",
        description="CRISPR knock-outs in MCF10A cells with doxorubicin (CROP-seq): 29 targets, 28 genes, very few counts",
        n_cells=4_343,
        n_genes=28,
        kind="counts",
        population_key="target",
        paper="Hill et al. 2018, Nat Methods",
        licence="BSD-2-Clause",
        repository="weililab/scMAGeCK",
        path="inst/extdata/singles_dox_mki67_v3.RDS",
        commit="06b5e6f5ca320a1581f34c3675a9ee85fa07176a",
        sha256="e8f7cba2ec36d3df3a34bc546a47711f5dbc2b00b196fa8d63449206a6adb016",
        n_bytes=618_987,
    ),
    Dataset(
        name="kang_ifnb_donors",
        description="PBMC with and without interferon beta: samples of two donors by cell type",
        n_cells=1_556,
        n_genes=1_267,
        kind="counts",
        population_key="population",
        paper="Kang et al. 2018, Nat Biotechnol",
        licence="GPL-3",
        repository="HelenaLC/muscat",
        path="data/example_sce.rda",
        commit="017b290b414212c357e184d17edcca27f4302ace",
        sha256="8ad6d176636301b3faaf7211ad6fc635a103b24e58a722ab4c3a66a20750079a",
        n_bytes=1_177_717,
    ),
    Dataset(
        name="kang_ifnb_celltypes",
        description="PBMC with and without interferon beta: condition by cell type, 6,998 genes",
        n_cells=1_975,
        n_genes=6_998,
        kind="counts",
        population_key="population",
        paper="Kang et al. 2018, Nat Biotechnol",
        licence="GPL-3",
        repository="theislab/scgen",
        path="data/valid.h5ad",
        commit="dd7e178f9b42b9dfef9eb18d0da4b8e3caea4cf7",
        sha256="5a3ef58521e7b35aec3dd0e5238e4377bb73cc3eec3f943011494cc094f974f2",
        n_bytes=1_650_973,
    ),
    Dataset(
        name="larry_hematopoiesis",
        description="Barcoded clones of mouse haematopoiesis at days 2, 4 and 6 (LARRY subset); cross with 'time'",
        n_cells=781,
        n_genes=2_481,
        kind="counts",
        population_key="clone",
        paper="Weinreb et al. 2020, Science",
        licence="MIT",
        repository="AllonKleinLab/cospar",
        path="tests/data/test_adata_preprocessed.h5ad",
        commit="ca54cad8a9db9a72152ba8a8b6d67d57eace4acb",
        sha256="c5bd2fbbe02c5fc069614004168afc9ed92d59ac6145d57b4ea25caf317fe63e",
        n_bytes=576_982,
    ),
    Dataset(
        name="tcr_clones_trex",
        description="T cells by paired receptor sequence; 'none' means no clone",
        n_cells=320,
        n_genes=10_905,
        kind="counts",
        population_key="clone",
        paper="Trex package example data",
        licence="MIT",
        repository="ncborcherding/Trex",
        path="data/trex_example.rda",
        commit="691df752fc0f872abc194d24b9b79aea53aa4a09",
        sha256="c31079929ee54dd54657e8a52392e24b153faced21aa2539e49ed2496356dfe2",
        n_bytes=1_422_702,
    ),
    Dataset(
        name="cell_lines_5cl",
        description="Mixture of five lung cancer cell lines on three plates (CEL-seq2)",
        n_cells=909,
        n_genes=16_074,
        kind="counts",
        population_key="population",
        paper="Tian et al. 2019, Nat Methods",
        licence="MIT",
        repository="LuyiTian/sc_mixology",
        path="data/csv/sc_celseq2_5cl_p1.count.csv (and p2, p3)",
        commit="7d00ffb0bd043467f365a9358d7312f294f13c9f",
        sha256="9ac79305bcf80c8aa4fb9be8fe22033ada30176e230d531b346bb918aa78ca9d",
        n_bytes=10_973_286,
    ),
    Dataset(
        name="acinar_age_series",
        description="Pancreatic acinar cells of eight donors aged 1 to 54 years (Smart-seq2)",
        n_cells=411,
        n_genes=827,
        kind="read counts",
        population_key="donor",
        paper="Enge et al. 2017, Cell",
        licence="GPL-3",
        repository="wmacnair/psupertime",
        path="data/acinar_hvg_sce.rda",
        commit="73825a28d3bd9bc881c15ee0c4c218eec1c9c207",
        sha256="c1761aa5b9cd5041a724dc08c10b74ce2e588f1509f17021c72891f63a155772",
        n_bytes=458_377,
    ),
    Dataset(
        name="paul15_240genes",
        description="Mouse myeloid progenitors (MARS-seq), 240 genes",
        n_cells=2_660,
        n_genes=240,
        kind="counts",
        population_key="cell_type",
        paper="Paul et al. 2015, Cell",
        licence="MIT",
        repository="bioc/tradeSeq",
        path="data/countMatrix.rda",
        commit="0de9e8baf1b69e043fa0cd2f23f7fd1753606d7c",
        sha256="f70516081eeb0e5e7944671f11f7412b33347e4b01d3ab1c4313d61ebdb14676",
        n_bytes=724_440,
    ),
    Dataset(
        name="norman_mcfaline_500hvg",
        description="CRISPR activation of single genes and pairs in K562, and kinase knock-downs in three glioma lines, 500 genes",
        n_cells=5_961,
        n_genes=500,
        kind="counts",
        population_key="population",
        paper="Norman et al. 2019, Science; McFaline-Figueroa et al.",
        licence="BSD-3-Clause",
        repository="altoslabs/perturbench",
        path="src/perturbench/data/resources/devel.h5ad",
        commit="d357dfae3b50968e800e9f5f273ff145080ae67c",
        sha256="3545e8cc2d214d5ec02378b81b7829e5ed656be7c1c598d2ebc90448e6145974",
        n_bytes=722_547,
    ),
    Dataset(
        name="covid_stephenson_pcs",
        description="PBMC of COVID-19 patients and healthy donors, 50 principal components",
        n_cells=18_598,
        n_genes=50,
        kind="continuous",
        population_key="sample",
        paper="Stephenson et al. 2021, Nat Med",
        licence="Artistic-2.0",
        repository="epurdom/GloScope",
        path="data/example_data_DEPRICATED.Rds",
        commit="45bce8fa6c3b0d2dbbcff799afc53dea12ba5793",
        sha256="78cc1fec0b8ab05fbe77bb0a8a8b977c6fbe533c63eb022873886455837e476a",
        n_bytes=4_561_196,
    ),
    Dataset(
        name="cytof_bcrxl_16samples",
        description="Mass cytometry of PBMC with and without B cell receptor cross-linking, 8 donors, 24 markers",
        n_cells=23_926,
        n_genes=24,
        kind="continuous",
        population_key="sample",
        paper="Bodenmiller et al. 2012, Nat Biotechnol",
        licence="GPL (>= 2)",
        repository="HelenaLC/CATALYST",
        path="data/PBMC_fs.rda",
        commit="5ee099ea677747c5f33aa8224539998c1b2c3f5b",
        sha256="7a9bff43faac1a0421eee23fbdc20cae3731bf0868b9e68caca477f5dd2e2447",
        n_bytes=2_921_612,
    ),
    Dataset(
        name="celegans_embryo_time",
        description="Amphid neuron lineages of the C. elegans embryo over time, 7,360 genes",
        n_cells=1_805,
        n_genes=7_360,
        kind="counts",
        population_key="population",
        paper="Packer et al. 2019, Science",
        licence="MIT",
        repository="cole-trapnell-lab/monocle3",
        path="inst/extdata/worm_embryo/*.rds",
        commit="1336cc97d053d46322148947a3375e2beb2f8652",
        sha256="1aa3e841c89d6a418e12dea029860eb8d963f6845c868120762ea7701ccbd63a",
        n_bytes=2_037_618,
    ),
)

DATASETS = {dataset.name: dataset for dataset in _DATASETS}
