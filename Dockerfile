# The base is an argument: any image with Python >= 3.11 in which `python` is on the path. For releases, give a digest.
# The builder needs pip and apt-get, and the same Python; what runs needs neither.
ARG BASE=python:3.12-slim-bookworm
ARG BUILDER=${BASE}

FROM ${BUILDER} AS build
WORKDIR /src
# All that may be installed, checked against its hash. Nothing is fetched after this layer.
COPY requirements.lock ./
RUN python -m pip download --no-cache-dir --quiet --no-deps --only-binary=:all: \
      --require-hashes --requirement requirements.lock --dest /wheels
COPY pyproject.toml README.md ./
COPY indexer indexer
COPY scorer scorer
COPY router router
COPY simulator simulator
# Of those wheels only what the product itself needs, the shared index included, comes into the image: no test tools,
# no pip.
RUN python -m pip wheel --quiet --no-deps --no-index --find-links /wheels --wheel-dir /wheels . \
 && python -m venv --without-pip /opt/warmroute \
 && python -m pip --python /opt/warmroute/bin/python install --no-cache-dir --quiet --no-index \
      --find-links /wheels --compile 'warmroute[redis]'
# What others bring and the product never opens: the hub's client (tokenizers are read from folders), colours of source
# code, test suites.
RUN python -m pip --python /opt/warmroute/bin/python uninstall --quiet --yes \
      huggingface_hub hf-xet fsspec filelock tqdm httpx2 httpcore2 truststore pygments \
 && find /opt/warmroute -type d -name tests -prune -exec rm -rf {} +
# The hot path as machine code: half the CPU for each request. An empty NATIVE leaves it out, and needs no C compiler.
ARG NATIVE=1
WORKDIR /native
SHELL ["/bin/sh", "-euc"]
# hadolint ignore=DL3008
RUN if [ -n "${NATIVE}" ]; then \
      apt-get update -qq; \
      apt-get install -y -qq --no-install-recommends gcc libc6-dev python3-dev; \
      rm -rf /var/lib/apt/lists/*; \
      python -m venv --without-pip .; \
      python -m pip --python bin/python install --no-cache-dir --quiet --no-index \
        --find-links /wheels 'warmroute[native]'; \
      bin/warmroute native; \
      modules=$(find lib/python3*/site-packages -maxdepth 3 -name '*.so' \
        \( -path '*/router/*' -o -path '*/indexer/*' -o -path '*/scorer/*' -o -name 'warmroute__mypyc.*' \)); \
      for module in ${modules}; do \
        cp "${module}" "/opt/warmroute/${module}"; \
      done; \
      find /opt/warmroute -name '*.so' \( -name 'warmroute__mypyc*' -o -path '*/uvloop/*' -o -path '*/xxhash/*' \
        -o -path '*/regex/*' -o -path '*/yaml/*' \) -exec strip --strip-unneeded {} +; \
    fi

FROM ${BASE}
# What it is made of: --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)".
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="warmroute" \
      org.opencontainers.image.description="A KV-cache-aware router in front of a fleet of vLLM pods" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/warmroute /opt/warmroute
ENV PATH=/opt/warmroute/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /
USER 65532:65532
EXPOSE 8080 9090
# Port as the variable says; with another port in a file only, give the variable too.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('WARMROUTE_GATEWAY__PORT', '8080') + '/healthz', timeout=4)"]
ENTRYPOINT ["warmroute"]
CMD ["serve"]
