"""Pictures that carry who made them: EXIF, IPTC, XMP, an ICC profile and a signed C2PA manifest.

The certificates are made on the spot, so that nobody trusts them; whether a manifest still belongs to the
bytes around it is checked all the same.
"""

import io
import json
from datetime import UTC, datetime, timedelta
from functools import cache

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image, ImageCms, IptcImagePlugin

CREATOR = "Ada Photographer"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" photoshop:Credit="Ada Photographer"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
_ACTIONS = {
    "label": "c2pa.actions",
    "data": {
        "actions": [
            {
                "action": "c2pa.created",
                "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture",
            }
        ]
    },
}


def signed_picture(seed: int) -> bytes:
    """A JPEG with every credential, signed over its bytes."""
    exif = Image.Exif()
    exif[0x013B] = CREATOR  # Artist
    plain = io.BytesIO()
    _noise(seed).save(
        plain,
        "JPEG",
        quality=95,
        exif=exif,
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        xmp=_XMP.encode(),
    )
    source, signed = io.BytesIO(_with_iptc(plain.getvalue())), io.BytesIO()
    manifest = {
        "claim_generator_info": [{"name": "a camera", "version": "1"}],
        "title": f"picture {seed}",
        "assertions": [_ACTIONS],
    }
    c2pa.Builder(json.dumps(manifest)).sign(_signer(), "image/jpeg", source, signed)
    return signed.getvalue()


def told(data: bytes) -> dict[str, str | None]:
    """What each kind of credential in a JPEG says; None where there is none."""
    image = Image.open(io.BytesIO(data))
    profile = image.info.get("icc_profile")
    return {
        "exif": image.getexif().get(0x013B),
        "iptc": ((IptcImagePlugin.getiptcinfo(image) or {}).get((2, 80)) or b"").decode() or None,
        "xmp": CREATOR if CREATOR.encode() in image.info.get("xmp", b"") else None,
        "icc": "a profile" if profile else None,
        "c2pa": manifest_state(data),
    }


def manifest_state(data: bytes) -> str | None:
    """`Valid` when the manifest belongs to these bytes, `Invalid` when not, None without a manifest."""
    try:
        return str(c2pa.Reader("image/jpeg", io.BytesIO(data)).get_validation_state())
    except c2pa.C2paError.ManifestNotFound:
        return None


def _noise(seed: int) -> Image.Image:
    base = Image.linear_gradient("L").resize((96, 96)).rotate(seed * 37)
    return Image.merge("RGB", (base, base.rotate(90), base.rotate(180)))


def _with_iptc(jpeg: bytes) -> bytes:
    """The same JPEG with a Photoshop segment whose IPTC record names the creator."""
    name = CREATOR.encode()
    record = b"\x1c\x02\x50" + len(name).to_bytes(2, "big") + name
    resource = b"8BIM\x04\x04\x00\x00" + len(record).to_bytes(4, "big") + record + b"\x00" * (len(record) % 2)
    body = b"Photoshop 3.0\x00" + resource
    end_of_first = 4 + int.from_bytes(jpeg[4:6], "big")  # behind SOI and the first segment
    return jpeg[:end_of_first] + b"\xff\xed" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[end_of_first:]


@cache
def _signer() -> c2pa.Signer:
    authority, camera = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = [_certificate("A camera", camera, authority), _certificate("Authority", authority, authority)]
    return c2pa.Signer.from_info(
        c2pa.C2paSignerInfo(
            alg=b"es256",
            sign_cert=b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain),
            private_key=camera.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            ta_url=None,
        )
    )


def _certificate(name: str, key: ec.EllipticCurvePrivateKey, authority: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Of the authority for itself, or for a camera that may sign documents."""
    own = key is authority
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
            "decipher_only",
        ),
        False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("Authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not own, key_cert_sign=own, crl_sign=own, **usage), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    if not own:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(authority, SHA256())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nobody"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )
