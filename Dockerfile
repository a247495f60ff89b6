# progdist with PyTorch for the CPU. With CUDA: --build-arg TORCH_INDEX=https://pypi.org/simple (docs/install.md).
ARG BASE=python:3.11-slim
FROM ${BASE}

# Where PyTorch comes from, and the extras to install, e.g. text,lora.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=""

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

WORKDIR /opt/progdist
COPY constraints.txt ./
RUN pip install -c constraints.txt --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install -c constraints.txt ".${EXTRAS:+[${EXTRAS}]}" && progdist --version

# Any user may run it, e.g. --user "$(id -u)", whose runs are then theirs.
RUN mkdir /work && chmod 1777 /work
ENV HOME=/work USER=progdist
USER 1000
WORKDIR /work
ENTRYPOINT ["progdist"]
CMD ["--help"]
