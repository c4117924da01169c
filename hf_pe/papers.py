"""The papers that recipes follow, by the link a plan names: what a card cites."""

from typing import NamedTuple


class Paper(NamedTuple):
    """Enough to cite it."""

    key: str
    authors: str
    title: str
    year: int
    arxiv: str

    @property
    def short(self) -> str:
        """Authors and year, as a text cites it."""
        names = [name.rpartition(" ")[2] for name in self.authors.split(" and ")]
        return f"{names[0]} et al. {self.year}" if len(names) > 2 else f"{' and '.join(names)} {self.year}"

    @property
    def bibtex(self) -> str:
        """A BibTeX entry."""
        return (
            f"@article{{{self.key},\n  title = {{{self.title}}},\n  author = {{{self.authors}}},\n"
            f"  journal = {{arXiv:{self.arxiv}}},\n  year = {{{self.year}}}\n}}"
        )


_PAPERS = (
    Paper(
        "he2015deep",
        "Kaiming He and Xiangyu Zhang and Shaoqing Ren and Jian Sun",
        "Deep Residual Learning for Image Recognition",
        2015,
        "1512.03385",
    ),
    Paper(
        "howard2017mobilenets",
        "Andrew G. Howard and Menglong Zhu and Bo Chen and Dmitry Kalenichenko and Weijun Wang and Tobias Weyand and "
        "Marco Andreetto and Hartwig Adam",
        "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
        2017,
        "1704.04861",
    ),
    Paper(
        "sandler2018mobilenetv2",
        "Mark Sandler and Andrew Howard and Menglong Zhu and Andrey Zhmoginov and Liang-Chieh Chen",
        "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
        2018,
        "1801.04381",
    ),
    Paper(
        "tan2019efficientnet",
        "Mingxing Tan and Quoc V. Le",
        "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
        2019,
        "1905.11946",
    ),
    Paper(
        "turc2019well",
        "Iulia Turc and Ming-Wei Chang and Kenton Lee and Kristina Toutanova",
        "Well-Read Students Learn Better: On the Importance of Pre-training Compact Models",
        2019,
        "1908.08962",
    ),
    Paper(
        "sun2020mobilebert",
        "Zhiqing Sun and Hongkun Yu and Xiaodan Song and Renjie Liu and Yiming Yang and Denny Zhou",
        "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
        2020,
        "2004.02984",
    ),
    Paper(
        "mehta2021mobilevit",
        "Sachin Mehta and Mohammad Rastegari",
        "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer",
        2021,
        "2110.02178",
    ),
    Paper(
        "chen2022knowledge",
        "Defang Chen and Jian-Ping Mei and Hailin Zhang and Can Wang and Yan Feng and Chun Chen",
        "Knowledge Distillation with the Reused Teacher Classifier",
        2022,
        "2203.14001",
    ),
    Paper(
        "mehta2022separable",
        "Sachin Mehta and Mohammad Rastegari",
        "Separable Self-attention for Mobile Vision Transformers",
        2022,
        "2206.02680",
    ),
    Paper(
        "woo2023convnext",
        "Sanghyun Woo and Shoubhik Debnath and Ronghang Hu and Xinlei Chen and Zhuang Liu and In So Kweon and "
        "Saining Xie",
        "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders",
        2023,
        "2301.00808",
    ),
    Paper(
        "song2024sleb",
        "Jiwon Song and Kyungseok Oh and Taesu Kim and Hyungjun Kim and Yulhwa Kim and Jae-Joon Kim",
        "SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks",
        2024,
        "2402.09025",
    ),
    Paper(
        "wang2020minilm",
        "Wenhui Wang and Furu Wei and Li Dong and Hangbo Bao and Nan Yang and Ming Zhou",
        "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
        2020,
        "2002.10957",
    ),
    Paper(
        "wang2020minilmv2",
        "Wenhui Wang and Hangbo Bao and Shaohan Huang and Li Dong and Furu Wei",
        "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
        2020,
        "2012.15828",
    ),
    Paper(
        "hinton2015distilling",
        "Geoffrey Hinton and Oriol Vinyals and Jeff Dean",
        "Distilling the Knowledge in a Neural Network",
        2015,
        "1503.02531",
    ),
    Paper(
        "gu2023minillm",
        "Yuxian Gu and Li Dong and Furu Wei and Minlie Huang",
        "MiniLLM: Knowledge Distillation of Large Language Models",
        2024,
        "2306.08543",
    ),
    Paper(
        "agarwal2023policy",
        "Rishabh Agarwal and Nino Vieillard and Yongchao Zhou and Piotr Stanczyk and Sabela Ramos and Matthieu Geist "
        "and Olivier Bachem",
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        2024,
        "2306.13649",
    ),
    Paper(
        "huang2022knowledge",
        "Tao Huang and Shan You and Fei Wang and Chen Qian and Chang Xu",
        "Knowledge Distillation from A Stronger Teacher",
        2022,
        "2205.10536",
    ),
    Paper(
        "li2016pruning",
        "Hao Li and Asim Kadav and Igor Durdanovic and Hanan Samet and Hans Peter Graf",
        "Pruning Filters for Efficient ConvNets",
        2016,
        "1608.08710",
    ),
    Paper(
        "hu2016trimming",
        "Hengyuan Hu and Rui Peng and Yu-Wing Tai and Chi-Keung Tang",
        "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures",
        2016,
        "1607.03250",
    ),
    Paper(
        "molchanov2016pruning",
        "Pavlo Molchanov and Stephen Tyree and Tero Karras and Timo Aila and Jan Kautz",
        "Pruning Convolutional Neural Networks for Resource Efficient Inference",
        2016,
        "1611.06440",
    ),
    Paper(
        "theis2018faster",
        "Lucas Theis and Iryna Korshunova and Alykhan Tejani and Ferenc Husz{\\'a}r",
        "Faster gaze prediction with dense networks and Fisher pruning",
        2018,
        "1801.05787",
    ),
    Paper(
        "tung2019similarity",
        "Frederick Tung and Greg Mori",
        "Similarity-Preserving Knowledge Distillation",
        2019,
        "1907.09682",
    ),
    Paper(
        "jiao2019tinybert",
        "Xiaoqi Jiao and Yichun Yin and Lifeng Shang and Xin Jiang and Xiao Chen and Linlin Li and Fang Wang and "
        "Qun Liu",
        "TinyBERT: Distilling BERT for Natural Language Understanding",
        2019,
        "1909.10351",
    ),
    Paper(
        "sanh2019distilbert",
        "Victor Sanh and Lysandre Debut and Julien Chaumond and Thomas Wolf",
        "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
        2019,
        "1910.01108",
    ),
    Paper(
        "reimers2020making",
        "Nils Reimers and Iryna Gurevych",
        "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation",
        2020,
        "2004.09813",
    ),
    Paper(
        "dettmers2022int8",
        "Tim Dettmers and Mike Lewis and Younes Belkada and Luke Zettlemoyer",
        "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
        2022,
        "2208.07339",
    ),
    Paper(
        "kurtic2023ziplm",
        "Eldar Kurtic and Elias Frantar and Dan Alistarh",
        "ZipLM: Inference-Aware Structured Pruning of Language Models",
        2023,
        "2302.04089",
    ),
    Paper(
        "dettmers2023qlora",
        "Tim Dettmers and Artidoro Pagnoni and Ari Holtzman and Luke Zettlemoyer",
        "QLoRA: Efficient Finetuning of Quantized LLMs",
        2023,
        "2305.14314",
    ),
    Paper(
        "frantar2022gptq",
        "Elias Frantar and Saleh Ashkboos and Torsten Hoefler and Dan Alistarh",
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        2022,
        "2210.17323",
    ),
    Paper(
        "li2023loftq",
        "Yixiao Li and Yifan Yu and Chen Liang and Pengcheng He and Nikos Karampatziakis and Weizhu Chen and Tuo Zhao",
        "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
        2023,
        "2310.08659",
    ),
    Paper(
        "sun2023wanda",
        "Mingjie Sun and Zhuang Liu and Anna Bair and J. Zico Kolter",
        "A Simple and Effective Pruning Approach for Large Language Models",
        2023,
        "2306.11695",
    ),
    Paper(
        "vanderouderaa2023surgeon",
        "Tycho F. A. van der Ouderaa and Markus Nagel and Mart van Baalen and Yuki M. Asano and Tijmen Blankevoort",
        "The LLM Surgeon",
        2023,
        "2312.17244",
    ),
    Paper(
        "men2024shortgpt",
        "Xin Men and Mingyu Xu and Qingyu Zhang and Bingning Wang and Hongyu Lin and Yaojie Lu and Xianpei Han and "
        "Weipeng Chen",
        "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        2024,
        "2403.03853",
    ),
    Paper(
        "ashkboos2024slicegpt",
        "Saleh Ashkboos and Maximilian L. Croci and Marcelo Gennari do Nascimento and Torsten Hoefler "
        "and James Hensman",
        "SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
        2024,
        "2401.15024",
    ),
    Paper(
        "lasby2025reap",
        "Mike Lasby and Ivan Lazarevich and Nish Sinnadurai and Sean Lie and Yani Ioannou and Vithursan Thangarasa",
        "REAP the Experts: Why Pruning Prevails for One-Shot MoE compression",
        2025,
        "2510.13999",
    ),
    Paper(
        "hu2021lora",
        "Edward J. Hu and Yelong Shen and Phillip Wallis and Zeyuan Allen-Zhu and Yuanzhi Li and Shean Wang "
        "and Lu Wang and Weizhu Chen",
        "LoRA: Low-Rank Adaptation of Large Language Models",
        2021,
        "2106.09685",
    ),
)
PAPERS = {f"https://arxiv.org/abs/{paper.arxiv}": paper for paper in _PAPERS}
