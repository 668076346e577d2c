# One peer. Two targets:
#
#   docker build --target cuda -t ppdl-mq:cuda .
#   docker build --target cpu  -t ppdl-mq:cpu  --build-arg PIP_ARGS="--extra-index-url URL" .
#
# The package index serves torch for Linux with CUDA (several GB); URL is an index of torch's CPU builds, see
# https://pytorch.org/get-started. Peers of one trial whose results are to be bit-identical use the same target.

FROM python:3.11-slim-bookworm AS base
RUN groupadd --system --gid 10001 ppdl-mq \
    && useradd --system --uid 10001 --gid 10001 --create-home ppdl-mq \
    && install -d -o ppdl-mq -g ppdl-mq -m 0700 /var/lib/ppdl-mq
WORKDIR /usr/src/ppdl-mq
COPY pyproject.toml constraints.txt README.md LICENSE ./
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# The user is given by number, so that Kubernetes can see that it is not root.
FROM base AS cuda
RUN pip install -c constraints.txt torch
COPY ppdl_mq ppdl_mq
RUN pip install -c constraints.txt ".[metrics]"
# Read by the NVIDIA container runtime.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/ppdl-mq
VOLUME /var/lib/ppdl-mq
ENTRYPOINT ["ppdl-mq"]
CMD ["--help"]

FROM base AS cpu
ARG PIP_ARGS=""
# torch first and alone: it is by far the largest, and this layer outlives changes of the package.
RUN pip install -c constraints.txt ${PIP_ARGS} torch
COPY ppdl_mq ppdl_mq
RUN pip install -c constraints.txt ".[metrics]"
USER 10001:10001
WORKDIR /var/lib/ppdl-mq
VOLUME /var/lib/ppdl-mq
ENTRYPOINT ["ppdl-mq"]
CMD ["--help"]
