# One image for server, proxies and Flower; `lab` beside it is the simulated site that docker-compose.yml has as a profile.
#   docker build --tag vmhaul .
#   docker build --tag vmhaul-lab --target lab .
ARG PYTHON=python:3.11-slim-bookworm
ARG DEBIAN=debian:bookworm-slim

# ---- the wheel, as it is released ----
FROM ${PYTHON} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY backup_server backup_server
COPY proxy_worker proxy_worker
COPY pipeline pipeline
COPY transports transports
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# ---- its environment ----
FROM ${PYTHON} AS environment
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/vmhaul \
    && /opt/vmhaul/bin/pip install --no-cache-dir /wheels/vmhaul-*.whl

# ---- the simulated site: its vCenter is a Go program, made from Debian's packages alone ----
FROM ${DEBIAN} AS labvc
RUN apt-get update \
    && apt-get install --yes --no-install-recommends golang-go golang-github-vmware-govmomi-dev \
    && rm -rf /var/lib/apt/lists/*
COPY lab/labvc /src/lab/labvc
RUN /src/lab/labvc/build.sh /labvc

FROM ${PYTHON} AS lab
WORKDIR /opt/lab
COPY lab/pyproject.toml ./
COPY lab/vmhaul_lab vmhaul_lab
RUN python -m venv /opt/lab/venv && /opt/lab/venv/bin/pip install --no-cache-dir .
COPY --from=labvc /labvc /usr/local/bin/labvc
RUN useradd --system --uid 10471 --create-home --home-dir /var/lib/lab lab
USER lab
WORKDIR /var/lib/lab
ENV PATH=/opt/lab/venv/bin:$PATH VMHAUL_LABVC=/usr/local/bin/labvc
ENTRYPOINT ["vmhaul-lab"]
CMD ["up", "--size", "quick", "--dir", "/var/lib/lab/site"]

# ---- what runs; the last stage, so that a build that names none makes this ----
FROM ${PYTHON} AS vmhaul
# libnfs: the direct-nfs mode. tini is not needed: `docker run --init` or compose's `init: true` reap.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnfs13 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10470 --no-create-home --home-dir /var/lib/vmhaul vmhaul \
    && install --directory --owner=vmhaul --group=vmhaul --mode=0700 \
       /var/lib/vmhaul /var/lib/vmhaul-proxy /repository /join /flower
COPY --from=environment /opt/vmhaul /opt/vmhaul
ENV PATH=/opt/vmhaul/bin:$PATH PYTHONUNBUFFERED=1 VMHAUL_DATA=/var/lib/vmhaul VMHAUL_DATA_DIR=/var/lib/vmhaul \
    VMHAUL_LOG_FORMAT=json
USER vmhaul
WORKDIR /var/lib/vmhaul
EXPOSE 8470
CMD ["python", "-m", "backup_server.main"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "backup_server.up.healthcheck"]
